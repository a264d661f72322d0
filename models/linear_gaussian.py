"""Inference and expectation-maximisation for x = W z + μ + noise, z ~ N(0, I), independent noise.

Column p has noise variance ψ_p. Of row n only the columns o in O_n are there (NaN elsewhere), and
the others are integrated out, which for independent noise means that they are left out:

    p(z_n | x_n) = N(m_n, C_n),  C_n = (I + Σ_o w_o w_oᵀ / ψ_o)⁻¹,  m_n = C_n Σ_o w_o d_no / ψ_o,
    log p(x_n) = -½ [ Σ_o (d_no - w_oᵀ m_n)² / ψ_o + m_nᵀ m_n + log det C_n⁻¹ + Σ_o log 2π ψ_o ],

with d = x - μ. The sum of squares is a minimum over z, so nothing cancels. With z̃ = (z, 1) and
a column's regression on z̃, the E-step sums

    A_p = Σ_{n: p ∈ O_n} E[z̃ z̃ᵀ],    b_p = Σ d_np E[z̃],    c_p = Σ d_np²,    rows_p = Σ 1,

and the M-step is (w_p, shift of μ_p) = A_p⁻¹ b_p, ψ_p = (c_p - b_pᵀ A_p⁻¹ b_p) / rows_p, or one
such ratio for all columns. Its step is the one of parameter expansion: z ~ N(η, Γ) is fitted too,
from Z = Σ_n E[z̃ z̃ᵀ] over all rows, and put back into W and μ, which leaves p(x) what it is and
makes the convergence faster.

θ is {"W": (P, D), "mu": (P,), "noise": (P,), or () for one}, in doubles.

References:
    Rubin, Thayer (1982). EM algorithms for ML factor analysis.
    Tipping, Bishop (1999). Probabilistic principal component analysis. Appendix B.
    Liu, Rubin, Wu (1998). Parameter expansion to accelerate EM: the PX-EM algorithm. Section 4.2.
"""

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def posterior(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means (N, D) of p(z_n | x_n), and Cholesky factors (N, D, D) of its precision.

    For rows `x` (N, P), NaN where a value is missing.
    """
    W, seen = state["W"], ~x.isnan()
    noise = state["noise"].expand(len(W))
    d = torch.where(seen, x - state["mu"], 0.0)
    scaled = W / noise[:, None]  # (P, D)
    outer = (scaled[:, :, None] * W[:, None, :]).flatten(1)  # (P, D D)
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    precision = eye + (seen.to(W) @ outer).unflatten(-1, eye.shape)  # (N, D, D)
    L = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((d @ scaled)[..., None], L).squeeze(-1)
    return mean, L


def log_evidence(state: State, x: Tensor) -> Tensor:
    """log p(x_n) of the values that are there, in nats: (N,)."""
    return _log_evidence(state, x, *posterior(state, x))


def _log_evidence(state: State, x: Tensor, mean: Tensor, L: Tensor) -> Tensor:
    W, seen = state["W"], ~x.isnan()
    noise = state["noise"].expand(len(W))
    rest = torch.where(seen, x - state["mu"] - mean @ W.mT, 0.0)
    squares = (rest.square() / noise).sum(-1) + mean.square().sum(-1)
    log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (squares + log_det + seen.to(W) @ (2 * math.pi * noise).log())


def expect(state: State, x: Tensor) -> tuple[State, Tensor]:
    """A (P, D+1, D+1), b (P, D+1), c (P,), rows (P,) and Z (D+1, D+1); Σ_n log p(x_n)."""
    mean, L = posterior(state, x)
    seen = (~x.isnan()).to(mean)
    d = torch.where(x.isnan(), 0.0, x - state["mu"])
    ones = torch.ones_like(mean[:, :1])
    z = torch.cat([mean, ones], -1)  # E[z̃] (N, D+1)
    covariance = torch.nn.functional.pad(torch.cholesky_inverse(L), (0, 1, 0, 1))
    second = z[:, :, None] * z[:, None, :] + covariance  # E[z̃ z̃ᵀ] (N, D+1, D+1)
    statistics = {
        "A": (seen.mT @ second.flatten(1)).unflatten(-1, second.shape[1:]),
        "b": d.mT @ z,
        "c": d.square().sum(0),
        "rows": seen.sum(0),
        "Z": second.sum(0),
    }
    return statistics, _log_evidence(state, x, mean, L).sum()


def maximize(state: State, statistics: State, least: float) -> State:
    """θ' from the sums of `expect`, the noise not below `least`; as many noises as in θ."""
    A, b, rows = statistics["A"], statistics["b"], statistics["rows"]
    solved = torch.linalg.solve(A, b[..., None]).squeeze(-1)  # (P, D+1)
    left = statistics["c"] - (b * solved).sum(-1)
    noise = left / rows if state["noise"].dim() else left.sum() / rows.sum()
    W, mu = solved[:, :-1], state["mu"] + solved[:, -1]
    Z = statistics["Z"] / statistics["Z"][-1, -1]
    eta = Z[-1, :-1]
    gamma = torch.linalg.cholesky(Z[:-1, :-1] - eta[:, None] * eta)
    return {"W": W @ gamma, "mu": mu + W @ eta, "noise": noise.clamp(min=least)}
