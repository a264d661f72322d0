"""Mean field with fixed draws, and linear-response covariances.

With M draws ε_m ~ N(0, I) made once, the ELBO of q = N(μ, diag e^{2ω}) becomes a function

    f(μ, ω) = 1/M Σ_m ℓ(μ + e^ω ⊙ ε_m) + Σ_d ω_d

that a trust-region method maximizes to any precision. With H = −∇²f there:

    covariances    Σ_LR = the μ block of H⁻¹ (linear response), which does not miss correlations,
    error of μ     the μ block of H⁻¹ Ĉ H⁻¹ / M, Ĉ the covariance over m of the terms' gradients.

Linear response is exact for a normal target. The error says whether M is enough.

Reference: Giordano, Ingram, Broderick (2024). Black box variational inference with a deterministic
objective: faster, more accurate, and even more black box. https://jmlr.org/papers/v25/23-1015.html
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.approximation.normal import DenseNormal, Normal
from ppl_lvm.approximation.unconstrained import LinAlgError, LogDensity

NUM_DRAWS = 30  # M
STEP = 1e-4  # of differences of gradients, in units of the parameters
MAX_ITERATIONS = 500
FLAT = 1e-10  # share of the largest curvature that differences of gradients cannot tell from 0


@dataclass(frozen=True)
class MeanField:
    """The maximum of f.

    Attributes:
        normal: N(μ, Σ_LR).
        loc, scale: μ and e^ω of the mean-field q (D,).
        error: standard errors of μ for the draws ε_m (D,).
        bound: f in nats, with the constant D/2 (1 + log 2π).
        gradient: largest entry of ∇f.
    """

    normal: DenseNormal
    loc: Tensor
    scale: Tensor
    error: Tensor
    bound: float
    gradient: float


def dadvi(
    target: LogDensity,
    start: Normal,
    generator: torch.Generator,
    *,
    num_draws: int = NUM_DRAWS,
) -> MeanField:
    """Maximize f from the mean-field normal of `start`, in coordinates of its scale.

    Raises:
        LinAlgError: f has no strict maximum there.
    """
    from scipy.optimize import minimize

    D, dtype = target.dim, target.dtype
    half = torch.randn((num_draws + 1) // 2, D, generator=generator, dtype=dtype)
    noise = torch.cat([half, -half])[:num_draws]
    unit, center = start.sd, start.loc

    def terms(x: Tensor) -> tuple[Tensor, Tensor]:
        """The M terms of f, and their gradients (M, 2D), in v = (μ − center)/unit and ω."""
        v, omega = x.split(D)
        spread = unit * omega.exp() * noise
        values, gradients = target(center + unit * v + spread)
        return values + omega.sum(), torch.cat([gradients * unit, gradients * spread + 1], 1)

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        values, gradients = terms(torch.from_numpy(x))
        return -float(values.mean()), -gradients.mean(0).numpy()

    def hessian_product(x: np.ndarray, p: np.ndarray) -> Any:
        step = STEP / max(float(np.linalg.norm(p)), 1e-300)
        return (negative(x + step * p)[1] - negative(x - step * p)[1]) / (2 * step)

    result = minimize(
        negative,
        np.zeros(2 * D),
        jac=True,
        hessp=hessian_product,
        method="trust-ncg",
        options={"gtol": 1e-6 * D, "maxiter": MAX_ITERATIONS},
    )
    x = torch.from_numpy(result.x)
    values, gradients = terms(x)
    columns = [hessian_product(result.x, row) for row in np.eye(2 * D)]
    H = torch.from_numpy(np.stack(columns, 1))
    H = (H + H.T) / 2
    eigenvalues = torch.linalg.eigvalsh(H)
    if not eigenvalues[0] > FLAT * eigenvalues[-1]:
        raise LinAlgError("The Hessian of the objective is not positive definite.")
    inverse = torch.linalg.inv(H)
    sandwich = inverse @ torch.cov(gradients.T) @ inverse / num_draws
    v, omega = x.split(D)
    covariance = unit.unsqueeze(1) * inverse[:D, :D] * unit
    loc = center + unit * v
    return MeanField(
        DenseNormal.of_covariance(loc, covariance),
        loc,
        unit * omega.exp(),
        unit * sandwich.diagonal()[:D].clamp(min=0).sqrt(),
        float(values.mean() + unit.log().sum() + D / 2 * (1 + np.log(2 * np.pi))),
        float(gradients.mean(0).abs().max()),
    )
