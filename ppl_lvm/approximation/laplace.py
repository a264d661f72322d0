"""Laplace's approximation.

    q(u) = N(û, (−∇²ℓ(û))⁻¹),    log p(x) ≈ ℓ(û) + D/2 log 2π + ½ log |Σ|

with û a mode of ℓ. The Hessian is the central difference of gradients, with steps of a thousandth
of the posterior standard deviations that an earlier estimate gives, so that units do not matter.
Exact for a normal target.

Reference: Tierney, Kadane (1986). Accurate approximations for posterior moments and marginal
densities. https://doi.org/10.1080/01621459.1986.10478240
"""

import torch
from torch import Tensor

from ppl_lvm.approximation.normal import DenseNormal
from ppl_lvm.approximation.unconstrained import LogDensity

STEP = 1e-3
FLOOR = 1e-10  # of the largest eigenvalue: flatter directions are no part of a normal
REFINEMENTS = 3


def negative_hessian(target: LogDensity, point: Tensor, scale: Tensor) -> Tensor:
    """−∇²ℓ (D, D) at a point (D,), by differences over `scale` (D,)."""
    step = torch.diag(STEP * scale)
    _, gradients = target(torch.cat([point + step, point - step]))
    forward, backward = gradients.split(len(point))
    hessian = -(forward - backward) / (2 * STEP * scale).unsqueeze(1)
    return (hessian + hessian.T) / 2


def laplace(target: LogDensity, point: Tensor, scale: Tensor) -> tuple[DenseNormal, Tensor]:
    """The approximation at the mode near `point`, and its log evidence.

    Args:
        scale: rough posterior standard deviations (D,), of the coordinates.
    """
    value, gradient = target(point.unsqueeze(0))
    for _ in range(REFINEMENTS):
        precision = negative_hessian(target, point, scale)
        covariance = _inverse(precision, scale)
        scale = covariance.diagonal().sqrt()
        candidate = point + covariance @ gradient[0]
        new_value, new_gradient = target(candidate.unsqueeze(0))
        improvement = (new_value - value).item()
        if not improvement > 0:
            break
        point, value, gradient = candidate, new_value, new_gradient
        if improvement < 1e-9:
            break
    normal = DenseNormal.of_covariance(
        point, _inverse(negative_hessian(target, point, scale), scale)
    )
    return normal, value[0] + normal.log_normalizer


def _inverse(precision: Tensor, scale: Tensor) -> Tensor:
    """The inverse, with flat and rising directions given the variance of `scale`."""
    unit = scale.unsqueeze(1) * precision * scale  # in coordinates of scale 1
    eigenvalues, vectors = torch.linalg.eigh(torch.nan_to_num(unit))
    steep = eigenvalues > max(FLOOR * eigenvalues.abs().max().item(), 1e-6)
    inverse = torch.where(steep, 1 / eigenvalues.clamp(min=1e-300), torch.ones(()).to(unit))
    covariance = (vectors * inverse) @ vectors.T
    return scale.unsqueeze(1) * covariance * scale
