"""AmortizedLowRank against a posterior correlated along one direction."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_lvm.checks import check
from ppl_lvm.guides import AmortizedLowRank
from ppl_lvm.particles import log_weights


def _sum(x: Tensor) -> None:
    """x ~ N(z_1 + z_2, 1/4): given x, the two causes explain each other away."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


def test_low_rank_normal_fits_a_correlated_posterior() -> None:
    """Fitted by KL(q ‖ p(z | x)) in closed form; then every draw has the weight p(x), exactly."""
    x = torch.linspace(-2, 2, 5)
    guide = AmortizedLowRank(_sum, x, rank=1, hidden=())
    covariance = torch.linalg.inv(torch.eye(2) + torch.ones(2, 2) / 0.25)
    mean = (covariance.sum(-1) / 0.25) * x[:, None]
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def normal() -> torch.distributions.MultivariateNormal:
        q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
        return torch.distributions.MultivariateNormal(q.mean, q.covariance_matrix)

    def closure() -> Tensor:
        optimizer.zero_grad()
        kl = torch.distributions.kl_divergence(normal(), exact).sum()
        kl.backward()
        return kl

    optimizer.step(closure)
    assert normal().covariance_matrix[0, 0, 1] < -0.3  # a diagonal guide would have zero
    log_w = log_weights(_sum, guide, x, num_particles=50)
    log_p = dist.Normal(0.0, 2.25**0.5).log_prob(x)
    torch.testing.assert_close(log_w, log_p.expand(50, 5), atol=0.02, rtol=0)


def test_low_rank_density_has_covariance_d_d_transposed_plus_a_diagonal() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            params = [1.0, 2.0, 3.0, 0.1, 0.0, -0.2, 1.0, 0.5, -1.0, 2.0, 0.0, 3.0]
            return torch.tensor(params).expand(len(x), -1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    x = torch.randn(4)
    guide = AmortizedLowRank(model, x, encoder=Encoder())
    node = poutine.trace(guide).get_trace(x).nodes["z"]
    waves = [[math.cos(math.pi * (i + 0.5) * j / 3) for j in (1, 2)] for i in range(3)]
    D = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, 3.0]]) + torch.tensor(waves)
    covariance = D @ D.T + torch.tensor([0.1, 0.0, -0.2]).mul(2).exp().diag()
    u = node["value"].log()  # the support is positive: u has a normal density, z also 1 / z
    exact = dist.MultivariateNormal(torch.tensor([1.0, 2.0, 3.0]), covariance).log_prob(u)
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), exact - u.sum(-1))


def test_low_rank_normal_passes_check_in_a_second_plate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 4, dim=-2):
            pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Normal(pi[..., 0], 1.0), obs=x.sum(-1).expand(4, -1))

    x = torch.rand(6, 5).round()
    issues = check(model, AmortizedLowRank(model, x), x)
    assert len(issues) == 0, str(issues)


def test_low_rank_normal_refuses_scalars_and_rank_zero() -> None:
    def scalar(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(
        ValueError, match=r"LowRank: it serves vectors, but 'z' has .* AmortizedNormal"
    ):
        AmortizedLowRank(scalar, torch.randn(3))
    with pytest.raises(ValueError, match="rank=0 is too small"):
        AmortizedLowRank(_sum, torch.randn(3), rank=0)
