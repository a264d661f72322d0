"""The low-rank normal guide on a posterior whose latents are correlated along one direction."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor, nn

from ppl_lvm.check import check
from ppl_lvm.estimators import StickingTheLanding
from ppl_lvm.guides import AmortizedLowRank
from ppl_lvm.models import PPCA, VAE


def _sum(x: Tensor) -> None:
    """x ~ N(z_1 + z_2, 1/4): given x, the two causes explain each other away."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


def test_it_finds_the_correlated_posterior() -> None:
    x = torch.linspace(-2, 2, 5)
    guide = AmortizedLowRank(_sum, x, rank=1, hidden=())
    svi = SVI(_sum, guide, Adam({"lr": 0.05}), StickingTheLanding(num_particles=16))
    for _ in range(300):  # the gradient's noise vanishes at the posterior, and nowhere else
        svi.step(x)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    exact = torch.linalg.inv(torch.eye(2) + torch.ones(2, 2) / 0.25)
    mean = (exact.sum(-1) / 0.25) * x[:, None]
    torch.testing.assert_close(q.mean, mean, atol=0.05, rtol=0)
    torch.testing.assert_close(q.covariance_matrix, exact.expand(5, 2, 2), atol=0.05, rtol=0)
    assert q.covariance_matrix[0, 0, 1] < -0.3  # a diagonal guide would have zero


def test_the_density_is_that_of_d_d_transposed_plus_a_diagonal() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            numbers = [1.0, 2.0, 3.0, 0.1, 0.0, -0.2, 1.0, 0.5, -1.0, 2.0, 0.0, 3.0]
            return torch.tensor(numbers).expand(len(x), -1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    x = torch.randn(4)
    guide = AmortizedLowRank(model, x, encoder=Encoder())
    node = poutine.trace(guide).get_trace(x).nodes["z"]
    D = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, 3.0]])
    covariance = D @ D.T + torch.tensor([0.1, 0.0, -0.2]).mul(2).exp().diag()
    u = node["value"].log()  # the support is positive: u has a normal density, z also 1 / z
    exact = dist.MultivariateNormal(torch.tensor([1.0, 2.0, 3.0]), covariance).log_prob(u)
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), exact - u.sum(-1))


def test_it_passes_the_check_with_our_models_and_in_a_second_plate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 4, dim=-2):
            pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Normal(pi[..., 0], 1.0), obs=x.sum(-1).expand(4, -1))

    x = torch.rand(6, 5)
    for one in (model, PPCA(2, 5), VAE(3)):
        findings = check(one, AmortizedLowRank(one, x), x)
        assert len(findings) == 0, str(findings)


def test_what_it_does_not_serve_is_named() -> None:
    def scalar(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"LowRank serves vectors, but 'z' has .* AmortizedNormal"):
        AmortizedLowRank(scalar, torch.randn(3))
    with pytest.raises(ValueError, match="rank >= 1, got 0; use AmortizedNormal"):
        AmortizedLowRank(_sum, torch.randn(3), rank=0)
