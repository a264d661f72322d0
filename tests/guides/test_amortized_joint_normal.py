"""AmortizedJointNormal against the joint density and an exact posterior."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_lvm.checks import check
from ppl_lvm.guides import AmortizedJointNormal, AmortizedMultivariateNormal
from ppl_lvm.guides.parts.variational_families import cholesky
from ppl_lvm.particles import log_weights


def _three(x: Tensor) -> None:
    """A scalar, a positive vector and a matrix."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        c = pyro.sample("c", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        pyro.sample("x", dist.Normal(a + b.sum(-1) + c.sum((-1, -2)), 1.0), obs=x)


def _joint(guide: AmortizedJointNormal, x: Tensor) -> MultivariateNormal:
    params = guide.encoder(x)
    return MultivariateNormal(params[:, : guide.size], scale_tril=cholesky(params, guide.size))


@pytest.mark.parametrize("particles", [None, 3])
def test_conditional_densities_multiply_to_the_joint_density(particles: int | None) -> None:
    x = torch.randn(4).double()
    guide = AmortizedJointNormal(_three, x)
    program: Any = guide
    if particles is not None:
        program = pyro.plate("particles", particles, dim=-2)(guide)
    trace = poutine.trace(program).get_trace(x)
    trace.compute_log_prob()
    a, b, c = (trace.nodes[name]["value"] for name in "abc")
    u = torch.cat([a[..., None], b.log(), c.flatten(-2)], -1)
    exact = _joint(guide, x).log_prob(u) - b.log().sum(-1)
    total = sum(trace.nodes[name]["log_prob"] for name in "abc")
    torch.testing.assert_close(total, exact, atol=1e-6, rtol=1e-6)


def test_draws_have_the_joint_covariance() -> None:
    x = torch.zeros(1)
    guide = AmortizedJointNormal(_three, x)
    with torch.no_grad(), pyro.plate("particles", 20_000, dim=-2):
        nodes = poutine.trace(guide).get_trace(x).nodes
        a, b, c = (nodes[name]["value"][:, 0] for name in "abc")
        u = torch.cat([a[:, None], b.log(), c.flatten(1)], -1)
        exact = _joint(guide, x)
    white = torch.linalg.solve_triangular(exact.scale_tril[0], (u - exact.mean).mT, upper=False)
    # Products of independent normals have variance 1 off the diagonal and 2 on it.
    torch.testing.assert_close(white @ white.mT / 20_000, torch.eye(7), atol=5 * 0.01, rtol=0)


def _two(x: Tensor) -> None:
    """x ~ N(a + b, 1/4): given x, two sites explain each other away."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((a + b).squeeze(-1), 0.5), obs=x)


class _Exact(nn.Module):
    """Parameters of the posterior: μ and S - I; for independent sites, μ and S - 1 of each."""

    def __init__(self, independent: bool) -> None:
        super().__init__()
        self.independent = independent

    def forward(self, x: Tensor) -> Tensor:
        covariance = torch.linalg.inv(torch.eye(2) + torch.ones(2, 2) / 0.25)
        mu = (covariance.sum(-1) / 0.25) * x[:, None]
        if self.independent:
            scales = covariance.diagonal().sqrt() - 1
            return torch.stack([mu, scales.expand_as(mu)], -1).flatten(1)
        S = torch.linalg.cholesky(covariance) - torch.eye(2)
        return torch.cat([mu, S.flatten().expand(len(x), 4)], -1)


def test_joint_normal_represents_a_posterior_across_sites() -> None:
    """Every draw has the weight p(x), but not with independent sites and exact marginals."""
    x = torch.linspace(-2, 2, 5)
    exact = dist.Normal(0.0, 2.25**0.5).log_prob(x)
    joint = AmortizedJointNormal(_two, x, encoder=_Exact(independent=False))
    log_w = log_weights(_two, joint, x, num_particles=50)
    torch.testing.assert_close(log_w, exact.expand(50, 5), atol=1e-3, rtol=0)
    factorized = AmortizedMultivariateNormal(_two, x, encoder=_Exact(independent=True))
    log_w = log_weights(_two, factorized, x, num_particles=50)
    assert (log_w - exact).abs().max() > 1.0


def test_joint_normal_passes_check_with_sites_of_several_shapes() -> None:
    x = torch.rand(6).round()
    issues = check(_three, AmortizedJointNormal(_three, x), x)
    assert len(issues) == 0, str(issues)


def test_joint_normal_refuses_a_second_plate() -> None:
    def inner(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, -1))

    with pytest.raises(ValueError, match=r"'z' stands in 'data', 'parts'. Use AmortizedNormal"):
        AmortizedJointNormal(inner, torch.randn(3))
