"""Cholesky factors that exist despite rounding.

    L Lᵀ = S + 2 P ε diag S,    ε = 2e-16, in doubles

A covariance whose smallest variance is lost in the rounding of its columns (one column the sum of
others, in thousands, above a floor of 1e-6) has no factor in single precision, and at worst none in
doubles. The added diagonal has the size of S's own rounding.
"""

import torch
from torch import Tensor


def cholesky(S: Tensor) -> Tensor:
    """L (…, P, P), in doubles, of symmetric S (…, P, P)."""
    S = S.double()
    P = S.shape[-1]
    eye = torch.eye(P, dtype=S.dtype, device=S.device)
    return torch.linalg.cholesky(S * (1 + 2 * P * torch.finfo(S.dtype).eps * eye))


def cholesky_above(scatter: Tensor, floor: Tensor | float) -> Tensor:
    """L (..., P, P) with L Lᵀ + diag(floor) = `scatter`, in doubles.

    `floor` is () or (P,). In columns divided by its root, eigenvalues below two are raised to it.
    """
    s = torch.as_tensor(floor, dtype=torch.float64, device=scatter.device).sqrt()
    s = s.expand(scatter.shape[-1])
    values, vectors = torch.linalg.eigh(scatter / (s[:, None] * s))
    values = (values - 1).clamp(min=1)
    return s[:, None] * cholesky(vectors @ (values[..., None] * vectors.mT))
