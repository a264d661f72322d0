"""Multivariate normal that whitens many rows by one matrix product.

With W = L⁻¹ of the K Cholesky factors L and any point c,

    log N(x; μ, L Lᵀ) = -½ ‖W (x - c) - W (μ - c)‖² + log det W - ½ P log 2π,

so a table (K, N) takes K matrix products instead of N solves, and memory for K N P numbers. c is
the mean of the μ: far from the origin, W x and W μ alone would cancel.
"""

import math
from typing import Any

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor


class WhitenedNormal(MultivariateNormal):
    """N(μ, L Lᵀ), its log-density by products with L⁻¹ where many rows share a component.

    Means (K, 1, P) and factors (K, 1, P, P) are shared over rows (N, P): the last batch dimension
    is 1. Other shapes use MultivariateNormal's log-density.
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: Any = None) -> None:
        super().__init__(loc, scale_tril=scale_tril, validate_args=validate_args)
        self._centers = loc  # before it is broadcast

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WhitenedNormal":
        """The same distribution over more rows."""
        new = super().expand(batch_shape, self._get_checked_instance(WhitenedNormal, _instance))
        new._centers = self._centers
        result: WhitenedNormal = new
        return result

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats."""
        L, mu = self._unbroadcasted_scale_tril, self._centers
        rows = value.dim() >= 2 and mu.dim() >= 3 and mu.shape[-2] == 1
        if not rows or (L.dim() > 2 and L.shape[-3] != 1):
            result: Tensor = super().log_prob(value)
            return result
        if self._validate_args:
            self._validate_sample(value)
        P = value.shape[-1]
        L = L.squeeze(-3) if L.dim() > 2 else L  # (..., P, P)
        eye = torch.eye(P, dtype=L.dtype, device=L.device)
        W = torch.linalg.solve_triangular(L, eye, upper=False).expand(*mu.shape[:-2], P, P)
        c = mu.detach().reshape(-1, P).mean(0)
        # One product for the difference: a column of ones beside x, a row of offsets below W.
        x = torch.nn.functional.pad(value - c, (0, 1), value=1.0)  # (..., N, P + 1)
        white = x @ torch.cat([W.mT, -(mu - c) @ W.mT], -2)  # (..., N, P)
        log_det = W.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)  # (..., 1)
        squares = torch.linalg.vector_norm(white, dim=-1) ** 2  # without a table of squares
        log_p = -0.5 * squares + log_det - 0.5 * P * math.log(2 * math.pi)
        return log_p.expand(torch.broadcast_shapes(self.batch_shape, value.shape[:-1]))
