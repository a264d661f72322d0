"""Normalizing flow: exact density by Jacobians, integrals and inverses."""

from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.normalizing_flow import NormalizingFlow


def shaken(scalar: str, observed: int = 3) -> NormalizingFlow:
    """A flow far from the identity, in double precision."""
    torch.manual_seed(1)
    flow = NormalizingFlow(observed, layers=4, hidden=(8,), scalar=scalar, bound=3.0).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        flow.means.copy_(torch.randn(observed))
        flow.scales.copy_(0.5 + torch.rand(observed))
    return flow


@pytest.fixture(params=["spline", "affine"])
def flow(request: Any) -> NormalizingFlow:
    return shaken(request.param)


def test_flow_log_density_equals_the_jacobian_determinant(flow: NormalizingFlow) -> None:
    x = 2 * torch.randn(5, 3, dtype=torch.float64)
    for row, result in zip(x, flow.density().log_prob(x), strict=True):
        jacobian = torch.autograd.functional.jacobian(flow.noise, row)
        base = torch.distributions.Normal(0.0, 1.0).log_prob(flow.noise(row)).sum()
        torch.testing.assert_close(result, base + jacobian.det().abs().log())


def test_flow_inverse_inverts_the_flow(flow: NormalizingFlow) -> None:
    x = flow.density().sample((200,))
    again = flow.density()
    u = flow.noise(x)
    for transform in again.transforms:
        u = transform(u)
    torch.testing.assert_close(u, x)


def test_flow_maps_its_draws_back_to_their_noise(flow: NormalizingFlow) -> None:
    torch.manual_seed(3)
    u = flow.noise(flow.density().sample((2000,)))
    for column in u.T:
        assert kstest(column.detach().numpy(), "norm").pvalue > 1e-3


def integral(flow: NormalizingFlow, log_density: Any) -> float:
    """∫ p over a box that holds nearly all of it."""
    draws = flow.density().sample((4000,))
    low, high = draws.amin(0) - 1, draws.amax(0) + 1
    axes = [
        torch.linspace(float(a), float(b), 500).double() for a, b in zip(low, high, strict=True)
    ]
    area = torch.tensor([float(axis[1] - axis[0]) for axis in axes]).prod()
    return float(log_density(torch.cartesian_prod(*axes)).exp().sum() * area)


@pytest.mark.slow
@pytest.mark.parametrize("scalar", ["spline", "affine"])
def test_flow_density_integrates_to_one(scalar: str) -> None:
    flow = shaken(scalar, observed=2)

    def without_jacobian(x: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, 1.0).log_prob(flow.noise(x)).sum(-1)

    with torch.no_grad():
        assert integral(flow, flow.density().log_prob) == pytest.approx(1, abs=0.01)
        assert abs(integral(flow, without_jacobian) - 1) > 0.1


@pytest.mark.slow
def test_flow_fit_maximizes_the_likelihood_and_density_still_integrates_to_one() -> None:
    data = load_data("moons(n=1000)")
    run = fit(
        NormalizingFlow(layers=4, hidden=(32,)),
        None,
        data,
        validation=0.3,
        num_steps=250,
        batch_size=200,
    )
    x = data.tensors[0]
    mean, covariance = x.mean(0), torch.cov(x.T)
    gaussian = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).mean()
    assert run.results["held_out"] > float(gaussian) + 0.3  # two moons are no ellipse
    assert run.results["log_evidence"] == pytest.approx(run.results["held_out"], abs=1e-4)
    with torch.no_grad():
        flow = run.model.double()
        assert integral(flow, flow.density().log_prob) == pytest.approx(1, abs=0.01)
    assert run.sample(7)["x"].shape == (7, 2)
