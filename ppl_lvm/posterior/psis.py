"""Pareto-smoothed importance sampling, and leave-one-out prediction by it.

Of S importance ratios the M = ⌈min(S/5, 3√S)⌉ largest are replaced by the expected order
statistics of a generalized Pareto distribution fitted to them, with shape k̂. Ratios have about
1/k finite moments: the smoothed estimate is reliable for k̂ below min(1 − 1/log₁₀ S, 0.7).

ArviZ has PSIS too, and the tests compare with it. It is not used here, because its results and
errors depend on the installed version. On 1,000 rows of 1,000 ratios (CPU seconds, median of 5)
this module takes 0.07 s, `psislw` of ArviZ 0.23 0.13 s and of 1.3 0.49 s, after an import of about
1 s. ArviZ 1.3 rounds M down, and one row of equal ratios raises an error for all rows.

References:
    Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling.
    https://arxiv.org/abs/1507.02646
    Zhang, Stephens (2009). A new and efficient estimation method for the generalized Pareto
    distribution. https://doi.org/10.1198/tech.2009.08017
    Magnusson, Andersen, Jonasson, Vehtari (2019). Bayesian leave-one-out cross-validation for
    large data. https://arxiv.org/abs/1904.10679 (the correction for draws from q)

NumPy only, all rows at once; torch is not imported.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RELIABLE_K_HAT = 0.7  # at most, with enough draws: Vehtari et al. 2024
MIN_DRAWS = 25  # below, the tail has fewer than five ratios
MIN_TAIL = 5
ROUNDING, RELATIVE_ROUNDING = 1e-3, 1e-6  # closer log-weights are equal up to rounding: no tail
CELLS = 2**23  # floats in the largest intermediate array: 64 MiB


def psis(log_w: ArrayLike) -> tuple[Floats, Floats]:
    """Smooth the tail of importance ratios, row by row.

    Args:
        log_w: log-ratios (..., S), log target − log proposal of S independent draws, up to a
            constant. −inf is a draw outside of the target's support.

    Returns:
        Smoothed log-weights (..., S), whose exponentials sum to 1 in each row, and k̂ (...).

        k̂ is −inf where the largest ratios are all equal: no tail. It is +inf, and the weights are
        not smoothed, where it is undefined: fewer than 25 draws, or fewer than five ratios above a
        tie. Where a row has NaN, +inf or only −inf, k̂ is +inf and the weights are NaN.
    """
    ratios = np.asarray(log_w, np.float64)
    if ratios.ndim == 0 or ratios.shape[-1] == 0:
        raise ValueError(f"psis needs log-ratios (..., S) with S draws, got shape {ratios.shape}.")
    rows = ratios.reshape(-1, ratios.shape[-1]).copy()  # (N, S)
    k = np.full(len(rows), np.inf)
    top = rows.max(axis=1)
    valid = np.isfinite(top)  # False for NaN, +inf, or nothing but -inf
    rows[~valid] = np.nan
    rows[valid] -= top[valid, None]
    if rows.shape[1] >= MIN_DRAWS and valid.any():
        rows[valid], k[valid] = _smooth(rows[valid])
    rows[valid] -= _logsumexp(rows[valid])[:, None]
    return rows.reshape(ratios.shape), k.reshape(ratios.shape[:-1])


def _logsumexp(x: Floats) -> Floats:
    """log Σ exp over the last axis; SciPy is imported at the first use."""
    from scipy.special import logsumexp

    return np.asarray(logsumexp(x, axis=-1))


def good_k(num_draws: int) -> float:
    """The k̂ up to which S draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
    return min(1 - 1 / np.log10(num_draws), RELIABLE_K_HAT) if num_draws > 1 else -np.inf


def k_hat(log_w: ArrayLike, exact: bool = False) -> Floats:
    """Pareto k̂ (...) of weights (..., S) as `psis` estimates it.

    It is −inf where several weights are equal up to rounding, or all are `exact`.
    """
    raw = np.asarray(log_w, np.float64)
    if exact:
        return np.full(raw.shape[:-1], -np.inf)
    with np.errstate(invalid="ignore"):
        spread = raw.max(axis=-1) - raw.min(axis=-1)
    equal = spread < np.maximum(ROUNDING, RELATIVE_ROUNDING * np.abs(raw).max(axis=-1))
    return np.where(equal & (raw.shape[-1] > 1), -np.inf, psis(raw)[1])


def effective_size(log_w: ArrayLike) -> Floats:
    """ESS 1 / Σ_s w̄_s² (...) of weights (..., S), not smoothed."""
    return np.asarray(1 / np.square(_normalize(log_w)).sum(axis=-1))


def draws_error(log_w: ArrayLike, weights: ArrayLike = 1.0) -> float:
    """Monte-Carlo error of mean_n log 1/S Σ_s w_ns of weights (N, S), independent between rows.

    By the delta method, the variance of each logarithm is 1/ESS − 1/S. `weights` (N,) are those of
    the rows in the mean.
    """
    ess = effective_size(log_w)
    variance = (1 / ess - 1 / np.shape(log_w)[-1]).clip(min=0)
    rows = np.broadcast_to(np.asarray(weights, np.float64), ess.shape)
    return float(np.sqrt((rows**2 * variance).sum()) / rows.sum())


def shared_draws_error(log_w: ArrayLike, weights: Floats | None = None) -> float:
    """`draws_error` where all rows have the same S draws: sd_s(mean_n w_ns / mean w_n) / √S."""
    relative = _normalize(log_w) * np.shape(log_w)[-1]  # (N, S)
    S = relative.shape[1]
    mean = np.average(relative, axis=0, weights=weights)
    return float(mean.std(ddof=1) / np.sqrt(S)) if S > 1 else 0.0


def _normalize(log_w: ArrayLike) -> Floats:
    raw = np.asarray(log_w, np.float64)
    return np.asarray(np.exp(raw - _logsumexp(raw)[..., None]))


def _smooth(rows: Floats) -> tuple[Floats, Floats]:
    """Rows (N, S) whose maximum is 0, and their k̂ (N,)."""
    S = rows.shape[1]
    M = int(np.ceil(min(S / 5, 3 * S**0.5)))
    order = np.argpartition(rows, S - M - 1, axis=1)[:, S - M - 1 :]  # (N, M + 1) largest
    tail = np.take_along_axis(rows, order, 1)
    rank = tail.argsort(axis=1)
    order, tail = np.take_along_axis(order, rank, 1)[:, 1:], np.take_along_axis(tail, rank, 1)
    # Exponentials below the smallest normal float would be indistinguishable.
    cutoff = np.maximum(tail[:, 0], np.log(np.finfo(np.float64).tiny))  # (N,)
    excess = np.exp(tail[:, 1:]) - np.exp(cutoff)[:, None]  # (N, M) ascending
    above = (tail[:, 1:] > cutoff[:, None]).sum(axis=1)  # (N,) M unless there are ties

    k = np.where(above == 0, -np.inf, np.inf)
    for n in np.unique(above[above >= MIN_TAIL]):
        (same,) = np.nonzero(above == n)
        for some in np.array_split(same, max(1, len(same) * M * (31 + int(n**0.5)) // CELLS)):
            k[some], sigma = fit_pareto(excess[some, M - n :])
            quantile = (np.arange(n) + 0.5) / n  # (n,)
            body = np.exp(cutoff[some])[:, None]
            with np.errstate(invalid="ignore"):  # a failed fit is NaN, and replaced
                new = np.log(body + pareto_quantile(quantile, k[some], sigma))
            raw = tail[some, M - n + 1 :]
            new = np.where(np.isfinite(new).all(axis=1, keepdims=True), np.minimum(new, 0), raw)
            rows[some[:, None], order[some, M - n :]] = new
    return rows, np.where(np.isnan(k), np.inf, k)


def fit_pareto(excess: Floats) -> tuple[Floats, Floats]:
    """Shape k and scale σ of generalized Pareto distributions, one per row.

    With b = −k/σ, the profile likelihood L(b) over a grid of 30 + √n points gives weights, the
    posterior mean b̂ = Σ b L(b) / Σ L(b), and k = mean log(1 − b̂x), shrunk to 1/2 with the weight
    of ten observations.

    Args:
        excess: (N, n), positive, ascending in each row.
    """
    n = excess.shape[1]
    m = 30 + int(n**0.5)
    quartile = excess[:, int(n / 4 + 0.5) - 1]  # (N,)
    least = 10 * np.finfo(np.float64).eps
    grid = 1 - np.sqrt(m / (np.arange(m) + 0.5))  # (m,)
    b = grid / (3 * quartile[:, None]) + 1 / excess[:, -1:]  # (N, m)
    with np.errstate(divide="ignore", invalid="ignore"):  # degenerate rows become NaN
        k = np.log1p(-b[:, :, None] * excess[:, None, :]).mean(axis=2)  # (N, m)
        log_L = n * (np.log(-b / k) - k - 1)  # (N, m)
        L = np.exp(log_L - _logsumexp(log_L)[:, None])
        L = np.where(least > L, 0, L)
        b_hat = (b * L).sum(axis=1) / L.sum(axis=1)  # (N,)
        k_hat = np.log1p(-b_hat[:, None] * excess).mean(axis=1)  # (N,)
        sigma = -k_hat / b_hat
    return (n * k_hat + 5) / (n + 10), sigma


def pareto_quantile(quantile: Floats, k: Floats, sigma: Floats) -> Floats:
    """σ ((1 − p)^(−k) − 1) / k at p = `quantile` (n,), for each k, σ (N,): (N, n)."""
    log_tail = np.log1p(-quantile)  # (n,)
    k = np.where(np.abs(k) < np.finfo(np.float64).eps, np.finfo(np.float64).eps, k)[:, None]
    with np.errstate(over="ignore"):  # a tail with k in the hundreds: its quantiles are infinite
        return sigma[:, None] * np.expm1(-k * log_tail) / k


@dataclass(frozen=True)
class Loo:
    """Leave-one-out predictive accuracy, in nats.

    Attributes:
        elpd: sum of `elpd_i`.
        se: its standard error √N · sd(elpd_i) over rows.
        p: effective number of parameters Σ log p(xᵢ | x) − elpd.
        elpd_i: expected log predictive density of each row (N,).
        k: k̂ of each row (N,).
        good_k: the largest reliable k̂.
    """

    elpd: float
    se: float
    p: float
    elpd_i: Floats
    k: Floats
    good_k: float


def loo(
    log_likelihood: ArrayLike, log_p: ArrayLike | None = None, log_q: ArrayLike | None = None
) -> Loo:
    """Expected log predictive density of each row given the others, from S draws θ ~ q.

    With l_si = log p(xᵢ | θ_s) and the log-ratios log p(x, θ_s) − log q(θ_s) − l_si, smoothed to
    log w_si,

        elpd_i = log Σ_s w_si p(xᵢ | θ_s).

    Without `log_p` and `log_q` the draws are treated as draws from the posterior itself.

    Args:
        log_likelihood: l (S, ...): draws first, all other dimensions are rows. With local latents
            it must be marginal over them, or every k̂ is high.
        log_p: (S,) log p(x, θ_s) up to a constant.
        log_q: (S,) log q(θ_s).

    Raises:
        ValueError: only one of `log_p` and `log_q`, or shapes that disagree.
    """
    l = np.asarray(log_likelihood, np.float64)
    if l.ndim < 2:
        raise ValueError(f"loo needs the log-likelihood (S, N) of each row, got {l.shape}.")
    l = l.reshape(len(l), -1).T  # (N, S)
    log_ratio: Any = 0.0
    if (log_p is None) != (log_q is None):
        raise ValueError("loo needs log_p and log_q of each draw, or neither.")
    if log_p is not None and log_q is not None:
        log_ratio = np.asarray(log_p, np.float64) - np.asarray(log_q, np.float64)  # (S,)
        if log_ratio.shape != l.shape[1:]:
            raise ValueError(
                f"loo needs log_p and log_q of the {l.shape[1]} draws, got {log_ratio.shape}."
            )
    log_w, k = psis(log_ratio - l)
    elpd_i = _logsumexp(log_w + l)
    log_w_full, _ = psis(log_ratio + np.zeros(l.shape[1]))
    se = float(np.sqrt(len(l)) * elpd_i.std(ddof=1)) if len(l) > 1 else float("nan")
    p = float(_logsumexp(log_w_full + l).sum() - elpd_i.sum())
    return Loo(float(elpd_i.sum()), se, p, elpd_i, k, good_k(l.shape[1]))
