"""AmortizedNormal against exact posteriors, and models that it refuses."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.nn import MLP
from ppl_lvm.programs.signatures import signature


def _linear(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x / 2, 1/2)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_amortized_normal_fits_the_posterior_of_a_linear_model() -> None:
    x = torch.linspace(-2, 2, 9)
    guide = AmortizedNormal(_linear, x, hidden=())
    objective = Trace_ELBO(64, max_plate_nesting=1, vectorize_particles=True)
    svi = SVI(_linear, guide, Adam({"lr": 0.02}), objective)
    for _ in range(500):
        svi.step(x)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    torch.testing.assert_close(q.mean, x / 2, atol=0.1, rtol=0)
    torch.testing.assert_close(q.variance, torch.full((9,), 0.5), atol=0.1, rtol=0)


def _constrained(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
        u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
        with pyro.plate("parts", 4, dim=-2):
            part = pyro.sample("part", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        loc = pi.sum(-1) + rate.sum(-1) + u + part.sum(-1).sum(-2)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_amortized_normal_has_supports_shapes_and_plates_of_the_model() -> None:
    guide = AmortizedNormal(_constrained, torch.randn(7))
    declared, drawn = signature(_constrained, torch.randn(5)), signature(guide, torch.randn(5))
    trace = poutine.trace(guide).get_trace(torch.randn(5))
    for site in declared.latents:
        assert drawn[site.name].batch_shape == site.batch_shape
        assert drawn[site.name].event_shape == site.event_shape
        assert drawn[site.name].plates == site.plates
        assert site.support.check(trace.nodes[site.name]["value"]).all()


def test_transformed_density_on_an_interval_is_normalized() -> None:
    """For a uniform site, by a sum over a grid."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    guide = AmortizedNormal(model, torch.randn(3))
    q = poutine.trace(guide).get_trace(torch.randn(3)).nodes["u"]["fn"]
    grid = torch.linspace(-1, 2, 20001)[1:-1]
    mass = q.log_prob(grid[:, None]).exp().sum(0) * (grid[1] - grid[0])
    torch.testing.assert_close(mass, torch.ones(3), atol=1e-3, rtol=0)


def test_sites_in_a_second_plate_depend_on_their_row_only() -> None:
    """A change of one row changes the draws of that row and of no other."""
    x = torch.randn(5)
    guide = AmortizedNormal(_constrained, x)
    draws = []
    for row in [x, torch.cat([x[:4], x[4:] + 1])]:
        pyro.set_rng_seed(1)
        draws.append(poutine.trace(guide).get_trace(row).nodes["part"]["value"])
    torch.testing.assert_close(draws[0][:, :4], draws[1][:, :4])
    assert not torch.allclose(draws[0][:, 4], draws[1][:, 4])


def test_amortized_normal_leaves_enumerated_sites_to_the_model() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    guide = AmortizedNormal(model, torch.randn(4))
    assert [site.name for site in signature(guide, torch.randn(4)).sites] == ["z"]


def test_amortized_normal_accepts_any_encoder_of_the_required_width() -> None:
    x = torch.randn(4, 1)
    encoder = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2))
    guide = AmortizedNormal(_linear_column, x, encoder=encoder)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    torch.testing.assert_close(q.mean, encoder(x)[:, 0])
    torch.testing.assert_close(q.stddev, encoder(x)[:, 1].exp())
    with pytest.raises(ValueError, match=r"returns \(4, 3\), but \['z'\] need \(4, 2\)"):
        AmortizedNormal(_linear_column, x, encoder=MLP(1, 3))


def _linear_column(x: Tensor) -> None:
    _linear(x[:, 0])


def test_encoder_receives_several_tensors_and_values_of_large_scale() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]), obs=x)
            pyro.sample("y", dist.Poisson(z.exp()), obs=y)

    x, y = 1e6 + 1e5 * torch.randn(50), torch.randint(9, (50,))
    guide = AmortizedNormal(model, x, y)
    q = poutine.trace(guide).get_trace(x, y).nodes["z"]["fn"]
    assert q.mean.abs().max() < 5
    assert 0.1 < q.stddev.min() < q.stddev.max() < 10


def _global(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def _infinite(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        n = pyro.sample("n", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(n, 1.0), obs=x)


def _undeclared(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3, 1), 1.0))
        pyro.sample("x", dist.Normal(z.sum(0), 1.0), obs=x)


def _per_row_support(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        u = pyro.sample("u", dist.Uniform(x - 1, x + 1))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def _nothing(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_global, "'w' is global. Use ppl_lvm.guides:auto_guide"),
        (_discrete, r"'k' ~ Bernoulli is discrete.*infer=\{\"enumerate\": \"parallel\"\}"),
        (_infinite, "'n' ~ Poisson is discrete, with too many values"),
        (_undeclared, r"'z': it has 3 values at batch dimension -2.*\.to_event\(1\)"),
        (_per_row_support, "'u': its support differs between rows"),
        (_nothing, "no continuous latent to serve"),
    ],
)
def test_amortized_normal_refuses_unsupported_models_with_a_remedy(
    model: Callable[..., None], message: str
) -> None:
    with poutine.block(), pytest.raises(ValueError, match=message):
        AmortizedNormal(model, torch.randn(5))
