"""Heywood cases: factor analysis whose maximum lacks noise.

EM approaches a noise of 0 at a sublinear rate, so it stops far from it. The likelihood maximized
over W is a function of ψ alone,

    f(ψ) = Σ_{j > D} (λ_j - log λ_j) + constant,    λ_1 ≥ λ_2 ≥ … eigenvalues of ψ^-½ S ψ^-½,

twice the negative log-likelihood of a row, with gradient diag(W Wᵀ + ψ - S) / ψ². A bounded
quasi-Newton method finds its minimum near a fitted ψ.

Reference:
    Lawley, Maxwell (1971). Factor analysis as a statistical method. Chapter 4.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

# Share of a column's variance at which its noise counts as 0.
LEAST_SHARE = 1e-4


def columns_without_noise(S: Tensor, noise: Tensor, latent: int) -> list[int]:
    """Columns whose noise goes to 0 on the path from `noise` (P,) to the nearest maximum.

    Args:
        S: covariance (P, P) of complete rows; without full rank the result is empty.
        noise: fitted ψ. Noises below `LEAST_SHARE` of the variance already are left out.
        latent: D.
    """
    variance = S.diagonal()
    scale = variance.rsqrt()
    R = (S * scale[:, None] * scale).numpy()  # in shares of the variances
    share = (noise / variance).numpy()
    if latent >= len(R) or not np.linalg.eigvalsh(R)[0] > 1e-9:
        return []
    least = np.where(share > LEAST_SHARE, LEAST_SHARE, 0.1 * share)

    def profile(u: np.ndarray) -> tuple[float, np.ndarray]:
        values, vectors = np.linalg.eigh(R / np.sqrt(u) / np.sqrt(u)[:, None])
        rest = values[:-latent]  # ascending
        strength = np.clip(values[-latent:] - 1, 0, None)
        W = np.sqrt(u)[:, None] * vectors[:, -latent:] * np.sqrt(strength)
        gradient = ((W**2).sum(1) + u - R.diagonal()) / u**2
        return float((rest - np.log(rest)).sum()), gradient

    bounds = [(low, None) for low in least]
    options = {"maxiter": 2000, "ftol": 1e-16, "gtol": 1e-9}
    result = minimize(profile, share, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    reached = (share > LEAST_SHARE) & (result.x <= 1.001 * LEAST_SHARE)
    # The likelihood must rise on the path, and still rise at its end.
    if not result.fun < profile(share)[0]:
        return []
    outward = profile(result.x)[1] > 0
    return torch.from_numpy(reached & outward).nonzero().flatten().tolist()
