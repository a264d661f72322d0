"""Contract of every exported guide."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_lvm import guides
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides.parts.site_guide import Latents
from ppl_lvm.models import PPCA, VAE, DeepMarkovModel, Diffusion, HierarchicalVAE
from ppl_lvm.runs.directory import load_run
from ppl_lvm.testing import check_guide

BITS = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)).round()


def _discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        bits = pyro.sample("bits", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(bits.sum(-1), 1.0), obs=x)


def _proportions(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(pi[..., 0], 1.0), obs=x)


def _globals(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w + pi[..., 0], scale), obs=x)


def _labeled(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = z.sum(-1, keepdim=True) + torch.zeros(x.shape[-1])
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
        pyro.sample("y", dist.Bernoulli(logits=z[..., 0]), obs=y)


def _linear(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x / 2, 1/2)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.squeeze(-1), 1.0), obs=x)


def _linear_posterior(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, None] / 2, 0.5**0.5).to_event(1))


def _three_counts(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        n = pyro.sample("n", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(n, 1.0), obs=x)


# Models with the latents of each kind, each with a batch.
CASES: dict[Latents, list[tuple[Callable[[], Any], tuple[Tensor, ...]]]] = {
    Latents.LOCAL_CONTINUOUS: [
        (lambda: VAE(2, hidden=(8,)), (BITS,)),
        (lambda: PPCA(2, 6), (BITS,)),
    ],
    Latents.LOCAL_DISCRETE: [(lambda: _discrete, (BITS.sum(-1),))],
    Latents.LOCAL_SIMPLEX: [(lambda: _proportions, (BITS[:, 0],))],
    Latents.GLOBAL_CONTINUOUS: [(lambda: _globals, (BITS.sum(-1),))],
    Latents.SEQUENCES: [(lambda: DeepMarkovModel(2, 2, (8,), 8), (BITS.reshape(8, 3, 2),))],
    Latents.LABELED_ROWS: [(lambda: _labeled, (BITS, BITS[:, 0]))],
    Latents.LAYERS: [(lambda: HierarchicalVAE((2, 2), hidden=(8,)), (BITS,))],
    Latents.ENCODER_PRIOR: [(lambda: VAE(2, hidden=(8,), prior="vamp(components=3)"), (BITS,))],
    Latents.DIFFUSION: [(lambda: Diffusion(steps=4, hidden=(8,)), (BITS,))],
}
BUILDERS = {n: g for n in guides.__all__ if hasattr(g := getattr(guides, n), "serves")}
SERVING = [n for n, g in BUILDERS.items() if Latents.LOCAL_CONTINUOUS in g.serves]


def test_every_exported_guide_declares_what_it_serves() -> None:
    assert set(guides.__all__) - set(BUILDERS) == {"AutoGuide"}  # the result of auto_guide
    for name, guide in BUILDERS.items():
        assert guide.serves, name
        assert guide.description, name
    assert set(CASES) == set(Latents)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "case"),
    [
        (n, k, i)
        for n, g in BUILDERS.items()
        for k in sorted(g.serves)
        for i in range(len(CASES[k]))
    ],
)
def test_guide_keeps_the_contract_on_the_models_it_serves(
    name: str, kind: Latents, case: int
) -> None:
    torch.manual_seed(0)
    make, batch = CASES[kind][case]
    model = make()
    if hasattr(model, "initialize"):
        model.initialize(*batch)
    check_guide(BUILDERS[name], model, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVING)
def test_guide_refuses_counts_and_approaches_an_exact_posterior(name: str) -> None:
    x = torch.linspace(-2, 2, 6)
    check_guide(
        BUILDERS[name],
        _linear,
        (x,),
        unsupported=[(_three_counts, (x,), "n")],
        exact=_linear_posterior,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVING)
def test_run_by_guide_address_is_restored_with_its_results(name: str, tmp_path: Path) -> None:
    x = torch.rand(40, 6).round()
    run = fit(
        VAE,
        f"ppl_lvm.guides:{name}",
        x,
        num_steps=4,
        batch_size=16,
        validation=8,
        engine="eager",
        settings={"latent": 2, "hidden": (8,)},
    )
    run.save(tmp_path)
    loaded = load_run(tmp_path)
    codes = []
    for each in (run, loaded):
        torch.manual_seed(0)  # some means are estimated by draws
        codes.append(each.encode(x[:5])["z"])
    torch.testing.assert_close(*codes)
    assert loaded.sample(3, seed=0)["x"].shape == (3, 6)
    evidence = loaded.log_evidence(x[:5], num_particles=10)
    assert evidence.value == run.log_evidence(x[:5], num_particles=10).value
    assert "posterior" in loaded.to_arviz(x[:5], num_samples=3)
    assert run.results["held_out"] < 0


def test_every_guide_but_auto_guide_refuses_a_model_without_latents() -> None:
    def empty(x: Tensor) -> None:
        del x

    for name in SERVING:
        if name == "auto_guide":
            continue
        with pytest.raises(ValueError, match=f"{name}: there is no .*latent to serve.*auto_guide"):
            BUILDERS[name](empty, torch.rand(4, 6))
    assert "empty" in str(guides.auto_guide(empty, torch.rand(4, 6)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AmortizedFlow", {"steps": 1}),
        ("AmortizedJointNormal", {}),
        ("SemiAmortized", {"steps": 1}),
    ],
)
def test_captured_steps_of_a_guide_equal_eager_steps(name: str, settings: dict[str, int]) -> None:
    x = torch.rand(30, 6).round()
    runs = [
        fit(
            VAE,
            f"ppl_lvm.guides:{name}",
            x,
            num_steps=12,
            engine=engine,
            settings={"latent": 2, "hidden": (8,)},
            guide_settings=settings,
        )
        for engine in ("eager", "captured")
    ]
    assert runs[1].results["engine"] == "captured"
    bounds = [torch.tensor(run.history["bound"]) for run in runs]
    torch.testing.assert_close(*bounds, atol=1e-4, rtol=1e-4)
