"""Flow steps against their Jacobians, inverses, and Pyro's spline."""

from typing import Any

import pytest
import torch
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor

from ppl_lvm.guides.parts.autoregressive_flow import Autoregressive, Conditioner
from ppl_lvm.nn.bijections import LEAST, Affine, Scalar, Spline


def _step(scalar: Scalar, size: int, *, reverse: bool = False) -> tuple[Autoregressive, Tensor]:
    network = Conditioner(size, 3, (16,), scalar.num_parameters, reverse=reverse).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))  # far from the identity
    return Autoregressive(scalar, network, torch.randn(3).double()), torch.randn(size).double()


SCALARS = [Affine(), Spline(5, 2.0)]


@pytest.mark.parametrize("scalar", SCALARS, ids=["affine", "spline"])
@pytest.mark.parametrize("reverse", [False, True])
def test_log_determinant_is_that_of_the_jacobian(scalar: Scalar, reverse: bool) -> None:
    step, x = _step(scalar, 4, reverse=reverse)
    jacobian: Any = torch.autograd.functional.jacobian(step._call, x)
    order = [3, 2, 1, 0] if reverse else [0, 1, 2, 3]
    in_order = jacobian[order][:, order]
    assert torch.equal(in_order, in_order.tril())  # a coordinate depends on earlier ones only
    assert in_order.tril(-1).abs().sum() > 0.01
    exact = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(step.log_abs_det_jacobian(x, step(x)), exact)


@pytest.mark.parametrize("scalar", SCALARS, ids=["affine", "spline"])
@pytest.mark.parametrize("size", [1, 4])
def test_inverse_of_a_step_restores_its_input(scalar: Scalar, size: int) -> None:
    step, _ = _step(scalar, size)
    x = 2 * torch.randn(200, size).double()  # in the bins and beyond
    torch.testing.assert_close(step._inverse(step._call(x)), x, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("scalar", SCALARS, ids=["affine", "spline"])
def test_zero_parameters_are_the_identity(scalar: Scalar) -> None:
    x = torch.linspace(-3, 3, 50).double()
    y, log_slope = scalar(x, torch.zeros(50, scalar.num_parameters).double())
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=1e-12, rtol=0)


def test_spline_agrees_with_that_of_pyro() -> None:
    bins, bound = 6, 3.0
    theta = torch.randn(3 * bins - 1).double()
    at_zero = torch.tensor(1 - LEAST).double().expm1().log()  # ours is the identity at zero
    raw = theta.split([bins, bins, bins - 1])
    params = [raw[0].softmax(-1), raw[1].softmax(-1), (raw[2] + at_zero).exp().log1p(), None]
    theirs = ConditionedSpline([p if p is None else p[None] for p in params], bound, "quadratic")
    x = torch.linspace(-4, 4, 201).double()[:, None]
    y, log_slope = Spline(bins, bound)(x, theta)
    # Theirs has slope 0.999 at both ends, where the identity begins: the bins there differ.
    torch.testing.assert_close(y, theirs(x), atol=1e-3, rtol=0)
    expected = theirs.log_abs_det_jacobian(x, theirs(x))
    knots = Spline(bins, bound)._knots(theta)[0]
    inner = (x[:, 0] > knots[1]) & (x[:, 0] < knots[-2])
    assert inner.sum() > 30
    torch.testing.assert_close(log_slope[inner], expected[inner])
    torch.testing.assert_close(y[inner], theirs(x)[inner])


def test_gradients_beyond_the_bound_are_finite() -> None:
    theta = (30 * torch.randn(4, 3 * 8 - 1)).requires_grad_()  # the narrowest of bins
    x = torch.tensor([-1e6, -4.0, 4.0, 1e6], requires_grad=True)
    y, log_slope = Spline(8, 4.0)(x, theta)
    (y.sum() + log_slope.sum()).backward()
    for variable in (x, theta):
        assert variable.grad is not None
        assert variable.grad.isfinite().all()
