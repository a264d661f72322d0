"""AmortizedMultivariateNormal against a correlated posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from ppl_lvm.checks import check
from ppl_lvm.guides import AmortizedMultivariateNormal


def _sum(x: Tensor) -> None:
    """x ~ N(z_1 + z_2, 1/4): given x, the two causes explain each other away."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


@pytest.mark.slow
def test_full_rank_normal_fits_a_correlated_posterior() -> None:
    x = torch.linspace(-2, 2, 9)
    guide = AmortizedMultivariateNormal(_sum, x, hidden=())
    objective = Trace_ELBO(64, max_plate_nesting=1, vectorize_particles=True)
    svi = SVI(_sum, guide, Adam({"lr": 0.01}), objective)
    for _ in range(600):
        svi.step(x)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    precision = torch.eye(2) + torch.ones(2, 2) / 0.25
    exact = torch.linalg.inv(precision)
    mean = (exact.sum(-1) / 0.25) * x[:, None]
    torch.testing.assert_close(q.mean, mean, atol=0.1, rtol=0)
    covariance = q.covariance_matrix.mean(0)  # the same for all x; the mean has less noise
    torch.testing.assert_close(covariance, exact, atol=0.1, rtol=0)
    assert covariance[0, 1] < -0.3  # a diagonal guide would have zero


def test_full_rank_covariance_is_the_square_of_the_encoders_output() -> None:
    x = torch.randn(5, 1)

    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 2.0, 0.0, 3.0, 4.0, -6.0]).expand(len(x), -1)

    def model(x: Tensor) -> None:
        _sum(x[:, 0])

    guide = AmortizedMultivariateNormal(model, x, encoder=Encoder())
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    S = torch.tensor([[1.0, 3.0], [4.0, -5.0]])  # the outputs after μ, plus I
    torch.testing.assert_close(q.mean[0], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(q.covariance_matrix[0], S @ S.T, atol=1e-3, rtol=1e-4)


def test_full_rank_normal_passes_check_on_a_simplex_in_a_second_plate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 4, dim=-2):
            pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Normal(pi[..., 0], 1.0), obs=x.expand(4, -1))

    x = torch.randn(6)
    issues = check(model, AmortizedMultivariateNormal(model, x), x)
    assert len(issues) == 0, str(issues)


def test_full_rank_normal_refuses_a_scalar_site() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'z' has event shape \(\). Use AmortizedNormal"):
        AmortizedMultivariateNormal(model, torch.randn(3))
