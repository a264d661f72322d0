"""Statistics of chains: R̂, effective sample sizes, tails.

R̂ and the bulk effective size are of ranks mapped to normal scores, so that they exist for heavy
tails too. R̂ compares the early and the late halves of all chains; many short chains are joined in
groups first, since means of few draws differ.

R̂ and the effective sizes are ArviZ's `rhat` and `ess(method="bulk")`, `ess(method="tail")` (tests
compare), without its import of about a second, which a fit would wait for.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and
    localization: an improved R̂ for assessing convergence of MCMC. https://arxiv.org/abs/1903.08008
    Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling.
    https://arxiv.org/abs/1507.02646 (k̂ of draws: fewer than 1/k̂ moments exist)
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_lvm.posterior.psis import k_hat

Floats = NDArray[np.float64]

GROUPS = 4  # that chains are joined to for R̂
TAILS = (0.05, 0.95)
COLUMNS = 500  # values whose statistics are computed at once


def _by_columns(statistic: Callable[[Any], Floats]) -> Callable[[Any], Floats]:
    """The statistic of draws (C, T, D), of 500 values at once: bounds its memory."""

    @wraps(statistic)
    def of_blocks(chains: Any) -> Floats:
        blocks = range(0, max(1, chains.shape[-1]), COLUMNS)
        return np.concatenate([statistic(chains[..., k : k + COLUMNS]) for k in blocks])

    return of_blocks


def normal_scores(chains: Floats) -> Floats:
    """Ranks of draws (C, T, D), over chains and time, as quantiles of a standard normal."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    shape = chains.shape
    flat = chains.reshape(-1, shape[-1])
    ranks = rankdata(flat, axis=0, method="average")
    return np.asarray(ndtri((ranks - 0.375) / (len(flat) + 0.25))).reshape(shape)


@_by_columns
def r_hat(chains: Any) -> Floats:
    """Rank-normalized split R̂ (D,) of draws (C, T, D): the larger of bulk and folded."""
    x = np.asarray(chains, np.float64)
    folded = np.abs(x - np.median(x, axis=(0, 1)))
    return np.maximum(_split_r_hat(normal_scores(x)), _split_r_hat(normal_scores(folded)))


def _split_r_hat(x: Floats) -> Floats:
    C, T, D = x.shape
    groups = min(C, GROUPS)
    x = x[: C // groups * groups].reshape(groups, C // groups, T, D)
    x = x.swapaxes(1, 2).reshape(groups, -1, D)  # in the order of time, so that halves are too
    half = x.shape[1] // 2
    halves = np.concatenate([x[:, :half], x[:, -half:]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = half * halves.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(((half - 1) * within + between) / (half * within)))


@_by_columns
def effective_size(chains: Any) -> Floats:
    """Bulk effective sample size (D,) of draws (C, T, D)."""
    return _effective_size(normal_scores(_halves(chains)))


@_by_columns
def tail_effective_size(chains: Any) -> Floats:
    """Tail effective sample size (D,): the smaller of those of the 5 % and the 95 % quantile."""
    x = _halves(chains)
    sizes = [_effective_size((x <= q).astype(float)) for q in np.quantile(x, TAILS, axis=(0, 1))]
    return np.fmin(*sizes)


@_by_columns
def relative_sd_error(chains: Any) -> Floats:
    """Monte Carlo error of the standard deviation (D,), as a share of it, by the delta method.

    With v = (x − x̄)² it is sd(v) / (2 v̄ √ESS(v)), about 1/√(2 ESS) for a normal.
    """
    x = _halves(chains)
    square = np.square(x - x.mean(axis=(0, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = square.std(axis=(0, 1)) / square.mean(axis=(0, 1))
        return np.asarray(relative / (2 * np.sqrt(_effective_size(square))))


@_by_columns
def tail_k_hat(chains: Any) -> Floats:
    """Shape k̂ (D,) of the heavier tail of draws (C, T, D): moments below the 1/k̂-th exist."""
    flat = np.asarray(chains, np.float64).reshape(-1, np.shape(chains)[-1]).T  # (D, S)
    with np.errstate(divide="ignore"):
        right = np.log(flat - flat.min(axis=1, keepdims=True))
        left = np.log(flat.max(axis=1, keepdims=True) - flat)
        return np.maximum(k_hat(right), k_hat(left))


def _halves(chains: Any) -> Floats:
    """Draws (2C, T/2, D) of the halves of chains (C, T, D)."""
    x = np.asarray(chains, np.float64)
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _effective_size(x: Floats) -> Floats:
    """Effective sample size of a mean over draws (C, T, D), by Geyer's monotone sequence."""
    C, T, D = x.shape
    centered = x - x.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centered, 2 * T, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :T].mean(axis=0) / T  # (T, D)
    within = covariance[0] * T / (T - 1)
    total = within * (T - 1) / T
    if C > 1:
        total = total + x.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - covariance * T / (T - 1)) / total
    rho[0] = 1
    pairs = rho[: T - T % 2].reshape(-1, 2, D).sum(axis=1)  # (T/2, D)
    positive = np.cumprod(pairs > 0, axis=0).astype(bool)
    monotone = np.minimum.accumulate(np.where(positive, pairs, 0), axis=0)
    tau = np.maximum(-1 + 2 * monotone.sum(axis=0), 1 / np.log10(C * T))
    return np.asarray(C * T / tau)
