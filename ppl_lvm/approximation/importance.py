"""Importance weights of a normal's draws, and its test."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.approximation.hamiltonian import HamiltonianChains
from ppl_lvm.approximation.normal import Normal
from ppl_lvm.approximation.unconstrained import LogDensity
from ppl_lvm.posterior.psis import RELIABLE_K_HAT, k_hat, psis

WEIGHT_DRAWS = 1024
PROBE_CHAINS, PROBE_WARMUP, PROBE_DRAWS = 32, 20, 20
# In posterior sd: visible in a plot. False alarms and misses are measured in docs/posteriors.md,
# "Verdicts against the truth".
SHIFT, RATIO = 0.3, 1.33


@dataclass
class Weighted:
    """Draws of a normal with weights.

    Attributes:
        normal: q.
        draws: (S, D).
        log_weights: log p(x, u) − log q(u) (S,); −∞ where p is not finite.
        smoothed: normalized weights (S,), smoothed by PSIS.
        k_hat: of the weights.
    """

    normal: Normal
    draws: Tensor
    log_weights: Tensor
    smoothed: Tensor
    k_hat: float

    @property
    def log_evidence(self) -> float:
        """log 1/S Σ_s w_s."""
        return float(self.log_weights.logsumexp(0)) - math.log(len(self.log_weights))

    def resampled(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (count, D) by the smoothed weights, or of q where no weight is positive."""
        if not self.smoothed.sum() > 0:
            return self.draws[torch.arange(count) % len(self.draws)]
        index = torch.multinomial(self.smoothed, count, replacement=True, generator=generator)
        return self.draws[index]


def weigh(target: LogDensity, normal: Normal, generator: torch.Generator) -> Weighted:
    """Draws of a normal with their weights."""
    u = normal.sample(WEIGHT_DRAWS, generator)
    log_w = (target(u)[0] - normal.log_prob(u)).nan_to_num(nan=-math.inf)
    smoothed, _ = psis(log_w.numpy())
    weights = torch.from_numpy(np.nan_to_num(np.exp(smoothed)))
    return Weighted(normal, u, log_w, weights, float(k_hat(log_w.numpy())))


def probe(target: LogDensity, weighted: Weighted, generator: torch.Generator) -> list[str]:
    """Reasons why a normal is wrong, by short chains that start from its weighted draws.

    A shift of a mean by more than 0.3 sd, or a standard deviation that changes by a third.
    """
    normal = weighted.normal
    points = weighted.resampled(PROBE_CHAINS, generator)
    chains = HamiltonianChains(target, normal, points, generator)
    moved = chains.run(PROBE_DRAWS, warmup=PROBE_WARMUP).draws.flatten(0, 1)
    before = weighted.resampled(WEIGHT_DRAWS, generator)
    if weighted.k_hat > RELIABLE_K_HAT:
        before = normal.sample(WEIGHT_DRAWS, generator)
    shift = ((moved.mean(0) - before.mean(0)) / torch.minimum(normal.sd, moved.std(0))).abs().max()
    ratio = (moved.std(0) / before.std(0)).log().abs().max().exp()
    reasons = []
    if not shift <= SHIFT:
        reasons.append(f"short chains move a mean by {float(shift):.1f} posterior sd")
    if not ratio <= RATIO:
        reasons.append(f"short chains change a standard deviation {float(ratio):.1f} times")
    return reasons
