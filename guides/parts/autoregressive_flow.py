"""Autoregressive flows of a vector, conditioned on a context.

    y_d = g(x_d; θ_d),    θ_d = network(x_1 … x_{d-1}, c)

with g increasing in x_d (`ppl_lvm.nn.bijections`; the affine one makes an inverse autoregressive
flow), so that the Jacobian is triangular and log |det| = Σ_d log g'(x_d). A draw takes one pass
of the network; the score of a value that the flow has not drawn takes one for every d.

Pyro's `affine_autoregressive` and `spline_autoregressive` are the same maps except for a slope of
0.999 at both ends of their splines. They select the points outside [-B, B] by a boolean mask, which
a captured step does not support. Therefore they are not used here. The masked network is Pyro's.

References:
    Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016). Improving variational inference
    with inverse autoregressive flow. https://arxiv.org/abs/1606.04934
"""

from typing import Any

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppl_lvm.nn import MLP
from ppl_lvm.nn.bijections import Scalar


class Conditioner(nn.Module):
    """Network of θ_d for every d, from x_1 … x_{d-1} and the context: (..., k, size of θ_d).

    `reverse` reverses the order of the coordinates. The initial outputs are small, so that the flow
    starts near the identity.
    """

    def __init__(
        self, size: int, context: int, hidden: tuple[int, ...], numbers: int, *, reverse: bool
    ) -> None:
        super().__init__()
        self.size, self.numbers = size, numbers
        if size == 1:  # θ depends on the context only
            self.net: Any = MLP(context, numbers, hidden)
        else:
            order = torch.arange(size)
            widths = [max(width, size) for width in hidden]
            self.net = ConditionalAutoRegressiveNN(
                size, context, widths, [numbers], order.flip(0) if reverse else order
            )
        last = self.net.layers[-1]
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Of x (..., k) and context (..., C)."""
        if self.size == 1:
            scalar_theta: Tensor = self.net(context).unsqueeze(-2)
            return scalar_theta
        theta: Tensor = self.net(x, context).mT
        return theta


class Autoregressive(Transform):
    """One step of a flow at a given context (..., C)."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, scalar: Scalar, conditioner: Conditioner, context: Tensor) -> None:
        super().__init__(cache_size=1)
        self._scalar, self._conditioner, self._context = scalar, conditioner, context
        self._last: tuple[Tensor, Tensor] | None = None  # x and its log-slopes

    def _call(self, x: Tensor) -> Tensor:
        y, log_slope = self._scalar(x, self._conditioner(x, self._context))
        self._last = (x, log_slope)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):  # every pass fixes one more coordinate
            x = self._scalar.inverse(y, self._conditioner(x, self._context))
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._call(x)
        assert self._last is not None
        return self._last[1].sum(-1)
