"""M-step of a linear regression on latents, from expected sums.

With z̃ = (z, 1), d = x - μ and the columns p that are present in a row, the E-step sums over rows

    A_p = Σ E[z̃ z̃ᵀ],    b_p = Σ d_p E[z̃],    c_p = Σ d_p²,    rows_p = Σ 1,

and the maximum-likelihood loadings, shift of the mean and residual sum of squares are

    (w_p, μ_p' - μ_p) = A_p⁻¹ b_p,    left_p = c_p - b_pᵀ A_p⁻¹ b_p.

Reference:
    Ghahramani, Hinton (1996). Parameter estimation for linear dynamical systems. Section 2.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]


def sums(z: Tensor, second: Tensor, d: Tensor, seen: Tensor) -> State:
    """A (P, D+1, D+1), b (P, D+1), c (P,) and rows (P,) of N rows.

    Args:
        z, second: E[z̃] (N, D+1) and E[z̃ z̃ᵀ] (N, D+1, D+1).
        d: residuals (N, P), 0 where a value is missing.
        seen: 1 where a value is present, else 0 (N, P).
    """
    return {
        "A": (seen.mT @ second.flatten(1)).unflatten(-1, second.shape[1:]),
        "b": d.mT @ z,
        "c": d.square().sum(0),
        "rows": seen.sum(0),
    }


def moments(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """E[z̃] (…, D+1) and E[z̃ z̃ᵀ] (…, D+1, D+1) of z ~ N(mean, covariance)."""
    z = torch.cat([mean, torch.ones_like(mean[..., :1])], -1)
    return z, z[..., :, None] * z[..., None, :] + torch.nn.functional.pad(covariance, (0, 1, 0, 1))


def solve(statistics: State) -> tuple[Tensor, Tensor, Tensor]:
    """Loadings (P, D), shift of the mean (P,), and residual sum of squares (P,)."""
    A, b = statistics["A"], statistics["b"]
    solved = torch.linalg.solve(A, b[..., None]).squeeze(-1)  # (P, D+1)
    return solved[:, :-1], solved[:, -1], statistics["c"] - (b * solved).sum(-1)


def shifted(statistics: State, delta: Tensor) -> State:
    """The sums for another mean: d' = d + delta, (P,)."""
    A, b, c, rows = (statistics[name] for name in ("A", "b", "c", "rows"))
    return {
        "A": A,
        "b": b + delta[:, None] * A[:, -1],
        "c": c + 2 * delta * b[:, -1] + delta.square() * rows,
        "rows": rows,
    }
