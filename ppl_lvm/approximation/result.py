"""The result of every method."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.approximation.normal import Normal

KEPT_DRAWS = 4096  # of a method's draws, stored with a run


@dataclass
class Approximation:
    """A posterior over one vector of unconstrained values.

    Attributes:
        method: name.
        normal: the normal approximation.
        chains: draws (C, T, D): of Hamiltonian chains, or C = 1 of the importance-weighted normal.
        log_weights: log p(x, u) − log q(u) of draws of the normal (S,).
        log_evidence: log p(x) by importance weights, nats.
        k_hat: of the weights.
        evaluations: gradients computed.
        r_hat, ess: largest R̂ and smallest effective size of the chains; NaN without chains.
        num_modes: modes with a visible share of the evidence.
        noncentered: sites that the chains moved in non-centered coordinates.
        reasons: why the verdict is not good; empty if it is.
    """

    method: str
    normal: Normal
    chains: Tensor
    log_weights: Tensor
    log_evidence: float
    k_hat: float
    evaluations: int
    r_hat: float = math.nan
    ess: float = math.nan
    num_modes: int = 1
    noncentered: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """True if nothing speaks against the draws."""
        return not self.reasons

    def thinned(self) -> Tensor:
        """At most 4,096 of the draws (S, D), evenly spaced, chain after chain."""
        return joined(thinned(self.chains))

    @property
    def sentence(self) -> str:
        """The method, its figures and the verdict in one sentence."""
        done = f"Method {self.method}: {self.evaluations:,} gradients"
        if self.noncentered:
            done += f", {', '.join(self.noncentered)} not centered"
        if not math.isnan(self.r_hat):
            done += f", R̂ {self.r_hat:.3f}, {self.ess:,.0f} effective draws"
        k = f"{self.k_hat:.2f}" if math.isfinite(self.k_hat) else "undefined"
        verdict = "good" if self.good else f"not good, since {'; '.join(self.reasons)}"
        return f"{done}, k̂ of the normal {k}; the posterior is {verdict}."

    def to_json(self) -> dict[str, Any]:
        """Entries of `run.results`."""
        return {
            "method": self.method,
            "gradients": self.evaluations,
            "k_hat": self.k_hat if math.isfinite(self.k_hat) else None,
            "r_hat": None if math.isnan(self.r_hat) else self.r_hat,
            "effective_draws": None if math.isnan(self.ess) else self.ess,
            "num_modes": self.num_modes,
            "noncentered": list(self.noncentered),
            "verdict": "good" if self.good else "not good",
            "verdict_reasons": list(self.reasons),
            "num_chains": len(self.chains),
        }


def joined(chains: Tensor) -> Tensor:
    """Draws (C · T, D) of chains (C, T, D)."""
    return torch.flatten(chains, 0, 1)


def thinned(chains: Tensor) -> Tensor:
    """Chains (C, T', D) of at most 4,096 evenly spaced draws."""
    C, T, _ = chains.shape
    step = max(1, math.ceil(C * T / KEPT_DRAWS))
    return chains[:, step - 1 :: step]
