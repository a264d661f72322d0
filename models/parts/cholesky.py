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


def cholesky_above(scatter: Tensor, floor: float) -> Tensor:
    """L (..., P, P) with L Lᵀ + floor · I = `scatter`, its eigenvalues raised to two floors."""
    values, vectors = torch.linalg.eigh(scatter)
    values = (values - floor).clamp(min=floor)
    return cholesky(vectors @ (values[..., None] * vectors.mT))
