"""The flow's density is exact: by Jacobians, by its integral, by pushing noise back and forth."""

from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from ppl_lvm.checks import check
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


def test_log_density_is_the_jacobians(flow: NormalizingFlow) -> None:
    x = 2 * torch.randn(5, 3, dtype=torch.float64)
    for row, found in zip(x, flow.density().log_prob(x), strict=True):
        jacobian = torch.autograd.functional.jacobian(flow.noise, row)
        base = torch.distributions.Normal(0.0, 1.0).log_prob(flow.noise(row)).sum()
        torch.testing.assert_close(found, base + jacobian.det().abs().log())


def test_noise_goes_forth_and_back(flow: NormalizingFlow) -> None:
    x = flow.density().sample((200,))
    again = flow.density()
    u = flow.noise(x)
    for transform in again.transforms:
        u = transform(u)
    torch.testing.assert_close(u, x)


def test_what_it_draws_is_noise_to_it(flow: NormalizingFlow) -> None:
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


@pytest.mark.parametrize("scalar", ["spline", "affine"])
def test_its_integral_is_one(scalar: str) -> None:
    flow = shaken(scalar, observed=2)

    def without_jacobian(x: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, 1.0).log_prob(flow.noise(x)).sum(-1)

    with torch.no_grad():
        assert integral(flow, flow.density().log_prob) == pytest.approx(1, abs=0.01)
        assert abs(integral(flow, without_jacobian) - 1) > 0.1


@pytest.mark.slow
def test_fit_maximizes_the_likelihood_and_the_integral_stays_one() -> None:
    data = load_data("moons(n=1000)")
    run = fit(
        NormalizingFlow(layers=4, hidden=(32,)),
        None,
        data,
        validation=0.3,
        num_steps=250,
        batch_size=200,
        progress=False,
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


def test_an_unsized_flow_takes_its_size_from_data_or_from_a_state() -> None:
    x = torch.randn(20, 4) * 3 + 1
    met = NormalizingFlow(layers=2, hidden=(5,))
    met.initialize(x)
    torch.testing.assert_close(met.means, x.mean(0))
    loaded = NormalizingFlow(layers=2, hidden=(5,))
    loaded.load_state_dict(met.state_dict())
    torch.testing.assert_close(loaded.density().log_prob(x), met.density().log_prob(x))


def test_passes_check() -> None:
    x = torch.randn(30, 3)
    model = NormalizingFlow(3)
    assert check(model, lambda x: None, x).ok


def test_what_makes_no_flow_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no scalar map 'cubic'"):
        NormalizingFlow(2, scalar="cubic")
    with pytest.raises(ValueError, match="at least 2 columns, got 1"):
        NormalizingFlow(1)
    with pytest.raises(ValueError, match="layers >= 2"):
        NormalizingFlow(2, layers=1)
    with pytest.raises(ValueError, match="has not met data"):
        NormalizingFlow().density()
    constant = torch.randn(10, 2)
    constant[:, 1] = 4.0
    with pytest.raises(ValueError, match="Column 1 is the same in all 10 rows"):
        NormalizingFlow(2).initialize(constant)
    constant[3, 0] = torch.nan
    with pytest.raises(ValueError, match="complete rows, but row 3, column 0 of x is missing"):
        NormalizingFlow(2).initialize(constant)
    with pytest.raises(ValueError, match=r"got \(10, 2, 2\). Flatten it: x.flatten\(1\)"):
        NormalizingFlow(2).initialize(torch.randn(10, 2, 2))
