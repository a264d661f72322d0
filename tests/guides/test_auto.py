"""auto_guide: choice, description, and coverage of the model's latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import auto_guide
from ppl_lvm.models import LatentDirichletAllocation
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.models.vae import VAE
from ppl_lvm.programs.signatures import signature


def test_auto_guide_is_empty_for_an_enumerated_mixture() -> None:
    x = torch.randn(9, 2)
    guide = auto_guide(GaussianMixture(3), x)
    assert signature(guide, x).sites == ()
    assert str(guide) == "Guide: z (3 values): enumerated exactly."
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(GaussianMixture(3), guide, x)
    assert loss > 0


def test_auto_guide_chooses_an_encoder_for_a_vae() -> None:
    x = torch.bernoulli(torch.full((9, 6), 0.5))
    model = VAE(3)
    guide = auto_guide(model, x)
    assert [site.name for site in signature(guide, x).sites] == ["z"]
    assert str(guide) == "Guide: diagonal normals from one encoder for the local latent z."


def _labeled(x: Tensor) -> None:
    """A plate "labels" around a global site and around the data."""
    labels = pyro.plate("labels", 3, dim=-2)
    with labels:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with labels, pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(3, -1))


def test_parts_of_auto_guide_share_a_plate() -> None:
    x = torch.randn(5)
    guide_signature = signature(auto_guide(_labeled, x), x)
    assert guide_signature["w"].batch_shape == (3, 1)
    assert guide_signature["z"].batch_shape == (3, 5)
    assert Trace_ELBO().loss(_labeled, auto_guide(_labeled, x), x) > 0


def _mixed_levels(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


@pytest.mark.slow
def test_auto_guide_has_a_part_for_global_and_one_for_local_latents() -> None:
    x = 4 + torch.randn(200)
    guide = auto_guide(_mixed_levels, x)
    assert {site.name for site in signature(guide, x).sites} == {"w", "scale", "z"}
    assert guide.reason == (
        "Guide: diagonal normals from one encoder for the local latent z; "
        "mean-field factors for the global latents w, scale."
    )
    svi = SVI(_mixed_levels, guide, Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(400):
        svi.step(x)
    w = _mean_of_w(guide, x)
    assert w == pytest.approx(x.mean().item(), abs=0.5)


def _mean_of_w(guide: pyro.nn.PyroModule, x: Tensor) -> float:
    """Mean of 50 draws of w."""
    draws = [pyro.poutine.trace(guide).get_trace(x).nodes["w"]["value"] for _ in range(50)]
    return torch.stack(draws).mean().item()


def test_auto_guide_refuses_a_discrete_site_that_is_not_enumerated() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(4)))
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    x = torch.randn(5)
    with pytest.raises(ValueError, match=r"'k' ~ Categorical: it takes 4 values.*config_enumerate"):
        auto_guide(model, x)
    assert signature(auto_guide(pyro.infer.config_enumerate(model), x), x).sites == ()


def _bits(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        b = pyro.sample("b", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)


def _bits_and_numbers(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        b = pyro.sample("b", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1))
        z = pyro.sample("z", dist.Normal(b.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)


def test_auto_guide_samples_discrete_sites_with_too_many_values_to_enumerate() -> None:
    x = torch.randn(6)
    guide = auto_guide(_bits, x)
    assert (
        str(guide)
        == "Guide: a probability for every value from one encoder for the local latent b."
    )
    assert check(_bits, guide, x).ok
    guide = auto_guide(_bits_and_numbers, x)
    assert "a chain of conditionals from one encoder for the local latents b, z" in str(guide)
    assert check(_bits_and_numbers, guide, x).ok
    run = fit(_bits_and_numbers, None, x, num_steps=3)
    assert "LeaveOneOut" in run.record["objective"]


@pytest.mark.slow
def test_auto_guide_takes_another_guide_for_the_local_sites() -> None:
    x = torch.randn(6)
    for local in ("AmortizedFlow", "AmortizedJointNormal", "AmortizedJoint"):
        guide = auto_guide(_mixed_levels, x, local=local)
        assert [site.name for site in signature(guide, x).sites] == ["w", "scale", "z"]
        assert check(_mixed_levels, guide, x).ok
    guide = auto_guide(_mixed_levels, x, local="AmortizedFlow")
    assert "normalizing flows from one encoder for the local latent z" in str(guide)
    with pytest.raises(
        ValueError, match=r"local='Flow' is no guide for local sites. Use one of Amort"
    ):
        auto_guide(_mixed_levels, x, local="Flow")
    with pytest.raises(ValueError, match="serves vectors, but 'z'"):
        auto_guide(_mixed_levels, x, local="AmortizedLowRank")


def test_auto_guide_chooses_dirichlets_where_all_local_latents_lie_on_a_simplex() -> None:
    x = torch.tensor([[3.0, 0, 1], [0, 2, 2], [1, 1, 4]])
    guide = auto_guide(LatentDirichletAllocation(topics=2), x)
    assert "Dirichlets from one encoder for the local latent theta" in str(guide)
    assert "mean-field factors for the global latent topics" in str(guide)
    assert check(LatentDirichletAllocation(topics=2, words=3), guide, x).ok

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(p * z[:, None], 1.0).to_event(1), obs=x)

    assert "diagonal normals from one encoder for the local latents p, z" in str(
        auto_guide(model, x)
    )
    with pytest.raises(ValueError, match="sites on a simplex, but 'z'"):
        auto_guide(model, x, local="AmortizedDirichlet")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Particles run one by one")
def test_default_guide_of_sparse_topics_trains_to_a_better_bound_than_normals() -> None:
    torch.manual_seed(1)
    topics = dist.Dirichlet(torch.full((100,), 0.05)).sample((5,))
    theta = dist.Dirichlet(torch.full((5,), 0.1)).sample((200,))
    x = torch.stack([dist.Multinomial(80, p).sample() for p in theta @ topics])
    bounds = [
        fit(
            LatentDirichletAllocation,
            auto_guide,
            x,
            settings={"topics": 5, "alpha": 0.1, "eta": 0.01},
            guide_settings={"local": local},
            optimizer="Adam(lr=0.01)",
            batch_size=50,
            num_steps=200,
        ).results["bound"]
        for local in (None, "AmortizedNormal")
    ]
    assert math.isfinite(bounds[0])
    assert bounds[0] > bounds[1]
