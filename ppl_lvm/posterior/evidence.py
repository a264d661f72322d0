"""Importance-weighted log evidence and its errors.

With K draws z_k ~ q(z | x_n) and weights w_nk = p(x_n, z_k) / q(z_k | x_n),

    L_n = log 1/K Σ_k w_nk ≤ log p(x_n) in expectation,      value = 1/N Σ_n L_n.

The value has two errors. The Monte-Carlo error of the draws follows from the delta method,
sd(L_n)² ≈ cv²_n / K with cv²_n = K Σ_k w̄_nk² - 1 and w̄ the normalized weights. The standard error
of the mean over rows is sd_n(L_n) / √N; more draws do not lower it.

References:
    Burda, Grosse, Salakhutdinov (2016). Importance weighted autoencoders.
    https://arxiv.org/abs/1509.00519, equation 8.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch
from ppl_lvm.particles import log_weights
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites

CHUNK = 100_000  # log-weights computed at once: bounds memory, K·B of them
LATENT_VALUES = 20_000_000  # scalars that the guide draws at once, for latents may be wide


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), nats per row.

    Attributes:
        value: 1/N Σ_n L_n; for a model with global latents log p(x_1…x_N) / N.
        standard_error: error of the mean over rows; NaN for global latents or a single row.
        monte_carlo_error: error from the draws, by the delta method (too small where weights are
            poor).
        effective_particles: smallest over rows of 1 / Σ_k w̄², out of `num_particles`.
        num_particles: K.
        per_row: L_n (N,); for global latents the one joint value (1,).
    """

    value: float
    standard_error: float
    monte_carlo_error: float
    effective_particles: float
    num_particles: int
    per_row: Tensor

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.4f}"
        return (
            f"{self.value:.4f}{error} nats per row "
            f"(Monte Carlo ± {self.monte_carlo_error:.4f}, {self.num_particles} particles)"
        )


def log_evidence(
    pair: ModelGuidePair, *batch: Any, num_particles: int = 1000, seed: int = 0
) -> Evidence:
    """Estimate log p(x) of the rows in `batch` by importance sampling from the guide.

    Enumerated sites are summed out exactly. If the guide has no latents the value is exact, and
    one particle is enough. With global latents the rows in `batch` are one data set with one joint
    weight.
    """
    rows = len(batch[0])
    with torch.no_grad(), preserve_rng(), pair.scope():
        torch.manual_seed(seed)
        width = num_latent_values(pair, *batch)
        if width == 0:
            num_particles = 1
        log_w = _weights(pair, batch, num_particles, width)
    K = len(log_w)
    per_row = torch.logsumexp(log_w, 0) - math.log(K)  # (N,) or (1,)
    weights = torch.softmax(log_w, 0)
    ess = 1 / weights.square().sum(0)
    variance = (K / ess - 1) / K
    N = len(per_row)
    joint = N == 1 and rows > 1
    scale = rows if joint else N
    return Evidence(
        value=float(per_row.sum()) / scale,
        standard_error=standard_error(per_row),
        monte_carlo_error=float(variance.sum().clamp(min=0).sqrt()) / scale,
        effective_particles=float(ess.min()),
        num_particles=K,
        per_row=per_row,
    )


def standard_error(per_row: Tensor) -> float:
    """Standard error of the mean of (N,) values; NaN for a single value."""
    N = len(per_row)
    return float(per_row.std() / math.sqrt(N)) if N > 1 else math.nan


def num_latent_values(pair: ModelGuidePair, *batch: Any) -> int:
    """Number of scalars in one draw of the guide for these rows."""
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    return sum(site["value"].numel() for site in sites.values())


def _weights(pair: ModelGuidePair, batch: Batch, num_particles: int, width: int) -> Tensor:
    """log w (K, N), or (K, 1) for joint weights; K = 1 if all draws give the same weight.

    `width` scalars are drawn for each particle.
    """
    chunk = max(1, min(num_particles, CHUNK // len(batch[0]), LATENT_VALUES // max(1, width)))
    sizes = [chunk] * (num_particles // chunk) + [num_particles % chunk] * bool(
        num_particles % chunk
    )
    parts = []
    for size in sizes:
        log_w = log_weights(pair.model, pair.guide, *batch, num_particles=size)
        parts.append(log_w.reshape(size, -1).double())
    return torch.cat(parts)
