"""R̂ and effective sample size of chains.

Both are of ranks mapped to normal scores, so that they exist for heavy tails too. R̂ compares the
halves of all chains; many short chains are joined in groups first, since means of few draws differ.

They are ArviZ's `rhat` and `ess(method="bulk")` (tests compare), without its import of about a
second, which a fit would wait for.

Reference: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and
localization: an improved R̂ for assessing convergence of MCMC. https://arxiv.org/abs/1903.08008
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GROUPS = 4  # that chains are joined to for R̂


def normal_scores(chains: Floats) -> Floats:
    """Ranks of draws (C, T, D), over chains and time, as quantiles of a standard normal."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    shape = chains.shape
    flat = chains.reshape(-1, shape[-1])
    ranks = rankdata(flat, axis=0, method="average")
    return np.asarray(ndtri((ranks - 0.375) / (len(flat) + 0.25))).reshape(shape)


def r_hat(chains: Any) -> Floats:
    """Rank-normalized split R̂ (D,) of draws (C, T, D): the larger of bulk and folded."""
    x = np.asarray(chains, np.float64)
    folded = np.abs(x - np.median(x, axis=(0, 1)))
    return np.maximum(_split_r_hat(normal_scores(x)), _split_r_hat(normal_scores(folded)))


def _split_r_hat(x: Floats) -> Floats:
    C, _, D = x.shape
    groups = min(C, GROUPS)
    x = x[: C // groups * groups].reshape(groups, -1, D)  # (groups, C/groups · T, D)
    half = x.shape[1] // 2
    halves = np.concatenate([x[:, :half], x[:, -half:]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = half * halves.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(((half - 1) * within + between) / (half * within)))


def effective_size(chains: Any) -> Floats:
    """Bulk effective sample size (D,) of draws (C, T, D), by Geyer's initial monotone sequence."""
    x = np.asarray(chains, np.float64)
    half = x.shape[1] // 2
    x = normal_scores(np.concatenate([x[:, :half], x[:, -half:]]))
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
