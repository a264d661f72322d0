"""GlobalNormal against exact posteriors, and models that it refuses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from ppl_lvm.guides import GlobalNormal
from ppl_lvm.programs.signatures import signature


def _counts(x: Tensor) -> None:
    """pi ~ Dirichlet(1), x ~ Categorical(pi): the posterior is Dirichlet(1 + counts)."""
    pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Categorical(pi), obs=x)


def test_global_normal_fits_a_dirichlet_posterior() -> None:
    x = torch.tensor([0] * 12 + [1] * 7 + [2] * 1)
    guide = GlobalNormal(_counts, x, rows=10.0)
    objective = Trace_ELBO(32, max_plate_nesting=1, vectorize_particles=True)
    svi = SVI(_counts, guide, Adam({"lr": 0.02}), objective)
    for _ in range(500):
        svi.step(x)
    concentration = guide.pi_concentration.detach()
    torch.testing.assert_close(concentration, torch.tensor([13.0, 8.0, 2.0]), rtol=0.1, atol=0.2)


def test_global_normal_has_supports_shapes_and_plates_of_the_model() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("topics", 4, dim=-2):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        R = pyro.sample("R", dist.LKJCholesky(3, torch.tensor(1.0)).expand([2]).to_event(1))
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(2, 3)).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            loc = rate.sum() + R.sum() + pi.sum()
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.randn(5)
    guide = GlobalNormal(model, x)
    guide_signature, model_signature = signature(guide, x), signature(model, x)
    trace = poutine.trace(guide).get_trace(x)
    for site in model_signature.latents:
        assert guide_signature[site.name].shape == site.shape
        assert guide_signature[site.name].plates == site.plates
        assert site.support.check(trace.nodes[site.name]["value"]).all()


def test_global_normal_starts_at_the_models_initial_values() -> None:
    class Model(pyro.nn.PyroModule):
        def forward(self, x: Tensor) -> None:
            w = pyro.sample("w", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

        def initial_values(self, x: Tensor) -> dict[str, Tensor]:
            return {"w": torch.tensor([3.0, 7.0])}

    guide = GlobalNormal(Model(), torch.randn(4))
    torch.testing.assert_close(guide.w_loc.detach().exp(), torch.tensor([3.0, 7.0]))


def test_global_normal_refuses_unsupported_models_with_a_remedy() -> None:
    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def discrete(x: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"no latent outside the plate 'data'.*\['z'\]"):
        GlobalNormal(local, torch.randn(3))
    with pytest.raises(ValueError, match="'k' ~ Bernoulli is discrete"):
        GlobalNormal(discrete, torch.randn(3))
