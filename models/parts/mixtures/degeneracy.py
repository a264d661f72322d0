"""Flat directions of the components of a Gaussian mixture.

With Σ_k the covariances, μ_k the means and v_k the direction in which component k varies least,

    the component's variance there       λ_k = v_kᵀ Σ_k v_k,
    that of all rows                     v_kᵀ (Σ_j π_j [Σ_j + (μ_j - μ)(μ_j - μ)ᵀ]) v_k,
    that of rounding                     v_kᵀ diag(10⁻¹³ · mean of x_p²) v_k,    μ = Σ_j π_j μ_j.

A component that is flat where all rows together are not has collapsed. Where all rows are flat, the
cause is a column that is constant, has units too large for its spread, or is determined by others.
"""

import torch
from torch import Tensor

from ppl_lvm.models.parts.row_checks import flat_column, rounding_variance

# A direction belongs to a column with this share of its square.
_ALONE = 0.99


def flattest(covariances: Tensor, *, spherical: bool = False) -> Tensor:
    """v_k v_kᵀ (K, P, P) for covariances (K, P, P); I / P if spherical."""
    if spherical:
        P = covariances.shape[-1]
        return torch.eye(P).to(covariances).expand_as(covariances) / P
    v = torch.linalg.eigh(covariances).eigenvectors[..., :1]
    return v @ v.mT


def directional_variance(flat: Tensor, covariances: Tensor) -> Tensor:
    """v_kᵀ S v_k (K,), of S (K, P, P), or (P, P) for one S."""
    return (flat * covariances).sum((-2, -1))


def total_covariance(weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """The covariance of the mixture (P, P)."""
    d = means - weights @ means
    return torch.einsum("k,kpq->pq", weights, covariances) + (weights[:, None] * d).mT @ d


def rounding(x: Tensor) -> Tensor:
    """Variances (P, P, a diagonal) of the rounding of rows `x` (N, P), without NaN."""
    return torch.diag(rounding_variance(x))


def describe_flat_direction(flat: Tensor, overall: Tensor) -> str:
    """Reason why all rows hardly vary along v, for v vᵀ and their covariance (P, P)."""
    share, variance = flat.diagonal(), directional_variance(flat, overall).clamp(min=0).item()
    uncorrelated = (share * overall.diagonal()).sum().item()  # variance of independent columns
    if share.max() < _ALONE and variance < (1 - _ALONE) * uncorrelated:
        columns = (share > (1 - _ALONE) / len(share)).nonzero()[:, 0].tolist()
        return (
            f"columns {', '.join(map(str, columns))} are linearly dependent (a sum, a copy): "
            f"all rows vary by no more than {variance:.1e} in one direction of them. Leave one "
            "of them out."
        )
    isotropic = len(share) > 1 and bool((share == share[0]).all())
    return flat_column(None if isotropic else int(share.argmax()), variance)
