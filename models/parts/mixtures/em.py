"""E-step and M-step of a Gaussian mixture.

With residuals u_nk = L_k⁻¹ (x_n - μ_k), Σ_k = L_k L_kᵀ, and responsibilities
r_nk ∝ π_k N(x_n; μ_k, Σ_k), the E-step sums over rows

    R_k = Σ_n r_nk,    m_k = Σ_n r_nk u_nk,    S_k = Σ_n r_nk u_nk u_nkᵀ,

and the M-step, with m̄ = m / R, is

    π_k = R_k / N,    μ_k' = μ_k + L_k m̄_k,    Σ_k' = L_k (S_k / R_k - m̄_k m̄_kᵀ) L_kᵀ,

the last one pooled over components (tied), its diagonal (diag), or the mean of that (spherical),
its eigenvalues, in columns divided by the root of the floor, raised to 1: the maximum under that
constraint. Moments of u lose no digits, wherever the data lie, since u is of order one where r is
not small. Both steps are matrix products; with u of shape (K, P, rows), rows last, they run at the
processor's speed.

θ is {"weights": π (K,), "means": μ (K, P), "variance": Σ}, in doubles, with Σ of shape (K, P, P)
if full, (P, P) if tied, and variances (K, P) if diag, (K,) if spherical. Nothing here branches on
values, so `torch.vmap` can batch restarts.

Reference:
    Dempster, Laird, Rubin (1977). Maximum likelihood from incomplete data via the EM algorithm.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.models.parts.cholesky import cholesky
from ppl_lvm.models.parts.mixtures import missing as mixture_missing

# Residuals in memory at once: a block of rows stays in the processor's cache.
BLOCK_NUMBERS = 2**18

State = dict[str, Tensor]


def expect(state: State, x: Tensor, covariance: str) -> tuple[State, Tensor]:
    """R (K,), m (K, P), S and Σ_n log p(x_n) over rows `x` (N, P), NaN where a value is missing.

    S is (K, P, P) if full, (P, P) and summed over components if tied, else diagonals (K, P).
    """
    incomplete = x.isnan().any(-1)
    if not incomplete.any():
        return _expect_complete(state, x, covariance)
    total, log_likelihood = _expect_incomplete(state, x[incomplete], covariance)
    if incomplete.all():
        return total, log_likelihood
    others, more = _expect_complete(state, x[~incomplete], covariance)
    return {name: t + others[name] for name, t in total.items()}, log_likelihood + more


def _expect_incomplete(state: State, x: Tensor, covariance: str) -> tuple[State, Tensor]:
    if covariance in ("diag", "spherical"):
        scale = _scales(state["variance"], state["means"])
        return mixture_missing.expect_diagonal(state, scale, x)
    L = cholesky(state["variance"])
    sums, log_likelihood = mixture_missing.expect(state, L if L.dim() == 3 else L[None], x)
    if covariance == "tied":
        sums["scatter"] = sums["scatter"].sum(0)
    return sums, log_likelihood


def _expect_complete(state: State, x: Tensor, covariance: str) -> tuple[State, Tensor]:
    means = state["means"]
    K, P = means.shape
    center = means.mean(0)
    W, log_det = whitening(state, covariance)  # L⁻¹ (K, P, P), or 1 / scales (K, P)
    constant = state["weights"].log() - log_det - 0.5 * P * math.log(2 * math.pi)
    shift = W @ (means - center)[..., None] if W.dim() == 3 else means[..., None]
    total: dict[str, Any] = {}
    log_likelihood: Any = 0.0
    for block in x.split(max(64, BLOCK_NUMBERS // (K * P))):
        if W.dim() == 3:  # one product of (K P, P) and (P, B)
            u = torch.addmm(shift.flatten()[:, None], W.flatten(0, 1), (block - center).mT, beta=-1)
            u = u.unflatten(0, (K, P))  # (K, P, B)
        else:
            u = (block.mT - shift) * W[..., None]
        log_joint = constant[:, None] - 0.5 * u.square().sum(1)  # (K, B)
        log_p = log_joint.logsumexp(0)
        r = (log_joint - log_p).exp()
        ru = u * r[:, None]
        sums = {"rows": r.sum(-1), "shift": ru.sum(-1), "scatter": _scatter(u, ru, covariance)}
        log_likelihood = log_likelihood + log_p.sum()
        total = {name: total.get(name, 0.0) + t for name, t in sums.items()}
    return total, log_likelihood


def maximize(state: State, statistics: State, covariance: str, least: Tensor | None) -> State:
    """θ' from the sums of `expect`; no variance is below `least`, () or (P,); None: no floor.

    In columns divided by the root of `least`, no variance in any direction is below 1.

    A component without rows keeps its mean and its variance, at weight 0.
    """
    means, variance, rows = state["means"], state["variance"], statistics["rows"]
    positive = rows.clamp(min=torch.finfo(rows.dtype).tiny)
    mean = statistics["shift"] / positive[:, None]  # m̄ (K, P)
    moved = torch.zeros_like(means)
    if covariance == "full":
        L = cholesky(variance)
        moved = (L @ mean[..., None]).squeeze(-1)
        inner = (
            statistics["scatter"] / positive[:, None, None] - mean[..., None] * mean[..., None, :]
        )
        new = raise_eigenvalues(L @ inner @ L.mT, least)
        new = torch.where((rows > 0)[:, None, None], new, variance)
    elif covariance == "tied":
        L = cholesky(variance)
        moved = mean @ L.mT
        inner = statistics["scatter"] - (mean * positive[:, None]).mT @ mean
        new = raise_eigenvalues(L @ (inner / rows.sum()) @ L.mT, least)
    else:
        scale = _scales(variance, means)
        moved = mean * scale
        inner = statistics["scatter"] / positive[:, None] - mean.square()
        new = inner * scale.square()  # (K, P)
        if covariance == "spherical":
            new = new.mean(-1)
        occupied = (rows > 0).reshape(-1, *[1] * (new.dim() - 1))
        new = torch.where(occupied, new if least is None else new.clamp(min=least), variance)
    return {"weights": rows / rows.sum(), "means": means + moved, "variance": new}


def transport_statistics(state: State, new: State, statistics: State, covariance: str) -> State:
    """The sums of `expect` at θ as they are at θ', where u' = A u + c.

    A = L'⁻¹ L and c = L'⁻¹ (μ - μ'), so that m' = A m + R c and
    S' = A S Aᵀ + A m cᵀ + c mᵀ Aᵀ + R c cᵀ.
    """
    rows = statistics["rows"][:, None]
    moved = state["means"] - new["means"]  # (K, P)
    if covariance in ("diag", "spherical"):
        scale = _scales(new["variance"], moved)
        A, c = _scales(state["variance"], moved) / scale, moved / scale
        m = A * statistics["shift"]
        S = A.square() * statistics["scatter"] + 2 * m * c + rows * c.square()
        return {"rows": statistics["rows"], "shift": m + rows * c, "scatter": S}
    L, inverse = cholesky(state["variance"]), whitening(new, covariance)[0]
    A = inverse @ L  # (K, P, P)
    c = (inverse @ moved[..., None]).squeeze(-1)
    m = (A @ statistics["shift"][..., None]).squeeze(-1)
    cross = m[..., None] * c[..., None, :]
    added = cross + cross.mT + (rows * c)[..., None] * c[..., None, :]
    if covariance == "tied":
        S = A[0] @ statistics["scatter"] @ A[0].mT + added.sum(0)
    else:
        S = A @ statistics["scatter"] @ A.mT + added
    return {"rows": statistics["rows"], "shift": m + rows * c, "scatter": S}


def _scatter(u: Tensor, ru: Tensor, covariance: str) -> Tensor:
    if covariance in ("diag", "spherical"):
        return (ru * u).sum(-1)
    scatter = ru @ u.mT  # K products (P, B) (B, P)
    return scatter.sum(0) if covariance == "tied" else scatter


def whitening(state: State, covariance: str) -> tuple[Tensor, Tensor]:
    """L_k⁻¹ (K, P, P) and log det L_k (K,); for diagonal forms 1 / scales (K, P)."""
    means, variance = state["means"], state["variance"]
    if covariance in ("full", "tied"):
        L = cholesky(variance)
        eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
        inverse = torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        K = len(means)
        return inverse.expand(K, *eye.shape), log_det.expand(K)
    scale = _scales(variance, means)
    return 1 / scale, scale.log().sum(-1)


def _scales(variance: Tensor, means: Tensor) -> Tensor:
    """Standard deviations (K, P) from variances (K, P) or (K,)."""
    scale = variance.sqrt()
    return scale if scale.dim() == means.dim() else scale[:, None].expand_as(means)


def raise_eigenvalues(S: Tensor, least: Tensor | None) -> Tensor:
    """Symmetric S (..., P, P), its eigenvalues in units of `least`^½ raised to 1 or more.

    `least` is () or (P,); None leaves S as it is.
    """
    S = 0.5 * (S + S.mT)
    if least is None:
        return S
    s = least.sqrt().expand(S.shape[-1])
    values, vectors = torch.linalg.eigh(S / (s[:, None] * s))
    # Adding the raise alone keeps larger eigenvalues to the last digit.
    increase, vectors = (1 - values).clamp(min=0), s[:, None] * vectors
    return S + vectors @ (increase[..., None] * vectors.mT)
