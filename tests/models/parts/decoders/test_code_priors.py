"""Priors of a VAE's codes: normalized densities."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, biject_to

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal, vamp_prior_guide
from ppl_lvm.models import VAE
from ppl_lvm.models.parts.decoders.code_priors import make_prior
from ppl_lvm.particles import log_weights
from ppl_lvm.runs.directory import load_run

FLOW = "flow(layers=3, scalar='affine')"
PRIORS = ["normal", "vamp(components=5)", FLOW]
BITS = (torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def _bent(spec: str) -> Any:
    """A prior of two codes that is far from its start."""
    prior = make_prior(spec, 2)
    prior.initialize(BITS)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.06 * torch.randn_like(parameter))
    return prior


def _grid() -> tuple[Tensor, float]:
    line = torch.linspace(-25, 25, 601)
    step = float(line[1] - line[0])
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), step**2


@pytest.mark.parametrize("spec", PRIORS)
def test_code_prior_density_integrates_to_one_and_fits_its_draws(spec: str) -> None:
    prior = _bent(spec)(BITS)
    z, cell = _grid()
    density = prior.log_prob(z).exp().detach()
    assert float(density.sum() * cell) == pytest.approx(1.0, abs=2e-3)
    draws = prior.sample(torch.Size([20_000]))
    error = draws.std(0) / math.sqrt(len(draws))
    mean = (z * density[:, None]).sum(0) * cell
    assert ((draws.mean(0) - mean).abs() < 5 * error + 1e-2).all()


def test_flow_prior_without_its_jacobian_is_detected() -> None:
    flow = _bent(FLOW).flow
    z, cell = _grid()
    wrong = Normal(0.0, 1.0).log_prob(flow.noise(z).detach()).sum(-1).exp().sum() * cell
    assert abs(float(wrong) - 1) > 0.02


def test_vamp_prior_equals_the_average_posterior_of_pseudo_inputs() -> None:
    model = VAE(2, prior="vamp(components=5)")
    model.initialize(BITS)
    guide = vamp_prior_guide(model, BITS)
    z = torch.randn(7, 2)
    loc, log_scale = guide.encoder(model.code_prior.pseudo).chunk(2, -1)
    each = Normal(loc, log_scale.exp()).log_prob(z[:, None]).sum(-1)  # (7, 5)
    torch.testing.assert_close(model.code_prior(BITS).log_prob(z), each.logsumexp(1) - math.log(5))


def test_vamp_prior_starts_at_rows_of_the_data() -> None:
    model, x = VAE(2, prior="vamp(components=5)"), torch.zeros(8, 3)
    model.initialize(x)  # sizes come from these rows, and pseudo-inputs with them
    model.initialize(BITS)
    assert model.code_prior.pseudo.any()
    assert all((row == BITS).all(1).any() for row in model.code_prior.pseudo)


@pytest.mark.parametrize("spec", PRIORS)
def test_code_prior_importance_weights_average_to_the_quadrature_evidence(spec: str) -> None:
    model = VAE(2, 3, hidden=(4,), prior=spec)
    model.initialize(BITS)
    model.code_prior = _bent(spec)
    z, cell = _grid()
    logits = model.decoder.net(z)
    log_x = BITS @ logits.T - torch.nn.functional.softplus(logits).sum(-1)  # (8, grid)
    exact = ((log_x + model.code_prior(BITS).log_prob(z)).exp().sum(1) * cell).detach()
    guide = AmortizedNormal(model, BITS)
    with torch.no_grad():  # wide enough for the prior's tails
        guide.encoder.net.layers[-1].bias[2:] = 1.0  # type: ignore[union-attr, index]
    w = log_weights(model, guide, BITS, num_particles=50_000).exp()
    error = w.std(0) / math.sqrt(len(w))
    assert ((w.mean(0) - exact).abs() < 5 * error + 2e-3 * exact).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "guide"),
    [("vamp(components=5)", "vamp_prior_guide"), ("flow(layers=2)", "AmortizedNormal")],
)
def test_vae_with_code_prior_passes_check_and_its_run_loads(
    spec: str, guide: str, tmp_path: Path
) -> None:
    data = load_data("digits(binarize=8)").subset(torch.arange(20))
    x = data.tensors[0]
    model = VAE(2, hidden=(8,), prior=spec)
    model.initialize(x)
    assert not list(check(model, AmortizedNormal(model, x), x))
    run = fit(
        "models/vae.py:VAE",
        f"ppl_lvm.guides:{guide}",
        data,
        settings={"latent": 2, "hidden": (8,), "prior": spec},
        num_steps=3,
        directory=tmp_path / "run",
    )
    again = load_run(tmp_path / "run")
    torch.testing.assert_close(again.encode(x)["z"], run.encode(x)["z"])
    torch.testing.assert_close(again.sample(3, seed=1)["x"], run.sample(3, seed=1)["x"])
    names = [name for name in run.parameters() if "encoder" in name]
    assert len(names) == 4  # one encoder: the prior's is the guide's
    assert run.to_arviz(x[:4], num_samples=2).prior["z"].shape == (1, 2, 4, 2)


def test_code_prior_support_is_real() -> None:
    u = torch.randn(3, 2)
    for spec in PRIORS:
        assert torch.equal(biject_to(_bent(spec)(BITS).support)(u), u)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wamp", "Unknown prior 'wamp'. Available: "),
        ("vamp(component=3)", "takes no 'component'.*Did you mean components"),
        ("vamp(components=0)", "components >= 1, got 0"),
    ],
)
def test_make_prior_rejects_invalid_specifications(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(2, prior=spec)


def test_vamp_prior_guide_rejects_a_prior_without_encoder() -> None:
    with pytest.raises(ValueError, match="VAE: its prior has no encoder"):
        vamp_prior_guide(VAE(2), BITS)
