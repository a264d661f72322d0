"""Is the gradient good? Signal, noise, dead and exploding parameters at the solution.

From R gradients g_r at fixed parameters, no optimiser between them, and per parameter group with
mean ḡ and per-element variance s²:

    signal²  = max(|ḡ|² − Σ s²/R, 0)       (|ḡ|² less what its own noise adds)
    SNR      = signal / √Σ s²

At a solution the signal is gone and SNR ≈ 0: a low SNR blames the estimator only while the bound
still climbs. There, below 0.05, the group does not learn (Rainforth et al. 2018). A parameter
whose gradient is exactly zero every time is dead: the bound does not see it.

Reference:
    Rainforth et al. (2018). Tighter variational bounds are not necessarily better.
    https://arxiv.org/abs/1802.04537
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.programs.pair import ModelGuidePair

QUESTION = "Is the gradient good?"
EXPLODING = 100.0  # largest norm over the upper tenth


@dataclass(frozen=True)
class Group:
    """Gradients of one parameter tensor, per row.

    Attributes:
        snr: signal-to-noise ratio; inf where there is signal and no noise.
        norm: median over replicates of the gradient's norm.
        peak: largest norm over that which one replicate in ten exceeds. (Over the median it
            would be large for sound gradients too: a scale's are like ε² − 1.)
        dead: share of elements whose gradient was zero in every replicate.
        finite: whether all replicates were finite.
    """

    snr: float
    norm: float
    peak: float
    dead: float
    finite: bool


@dataclass(frozen=True)
class GradientQuality:
    """Attributes:
    groups: parameter name -> `Group`.
    replicates: R.
    converged: what is known of training: None if nothing is.
    """

    groups: dict[str, Group]
    replicates: int
    converged: bool | None

    @property
    def dead(self) -> list[str]:
        return [name for name, g in self.groups.items() if g.dead == 1.0]

    @property
    def exploding(self) -> list[str]:
        return [n for n, g in self.groups.items() if not g.finite or g.peak > EXPLODING]

    def findings(self) -> list[Finding]:
        return [self._dead_finding(), self._exploding_finding(), self._snr_finding()]

    def _dead_finding(self) -> Finding:
        return Finding(
            QUESTION,
            "parameters that never have a gradient",
            float(len(self.dead)),
            None,
            "good 0, bad more",
            PROJECT_DEFAULT,
            "bad" if self.dead else "good",
            f"Never a gradient: {', '.join(self.dead)}."
            if self.dead
            else f"All {len(self.groups)} have one.",
            "Remove them, or find what cuts them from the bound (detach, an unused branch, "
            "saturated units)."
            if self.dead
            else "",
        )

    def _exploding_finding(self) -> Finding:
        broken = [n for n, g in self.groups.items() if not g.finite]
        sound = [g.peak for g in self.groups.values() if g.finite]
        peak = max(sound, default=math.inf)
        return Finding(
            QUESTION,
            "largest gradient norm / its upper tenth, worst parameter",
            peak if not broken else math.inf,
            None,
            f"good ≤ 10, bad > {EXPLODING:g} or not finite",
            PROJECT_DEFAULT,
            "bad" if broken else graded(peak, 10.0, EXPLODING),
            f"Not finite: {', '.join(broken)}."
            if broken
            else f"{self.replicates} gradients at the same parameters.",
            "" if not broken and peak <= 10 else "Clip gradients (clip_norm), or more particles.",
        )

    def _snr_finding(self) -> Finding:
        live = {n: g.snr for n, g in self.groups.items() if g.dead < 1 and g.finite}
        if not live:
            return Finding(QUESTION, "SNR", None, None, "", "", "unknown", "No sound gradient.", "")
        worst = min(live, key=lambda n: live[n])
        value = live[worst]
        climbing = self.converged is False
        known = self.converged is not None
        return Finding(
            QUESTION,
            "signal-to-noise ratio of the gradient, worst parameter",
            value,
            1 / math.sqrt(2 * self.replicates),
            "bad < 0.05 while the bound still changes; at a solution 0 is right",
            "Rainforth et al. 2018, arXiv:1802.04537; level: " + PROJECT_DEFAULT,
            ("bad" if value < 0.05 else "good") if climbing else "good" if known else "unknown",
            f"{worst}; median over parameters {sorted(live.values())[len(live) // 2]:.2g}. "
            + (
                "Training has not converged."
                if climbing
                else "Training has converged, where the signal vanishes."
                if known
                else "Whether training has converged is not known."
            ),
            "More particles, a lower-variance estimator, or a larger batch."
            if climbing and value < 0.05
            else "",
        )


def gradient_quality(
    pair: ModelGuidePair,
    *batch: Any,
    replicates: int = 100,
    converged: bool | None = None,
    seed: int = 0,
) -> GradientQuality:
    """R = `replicates` gradients of the pair's objective on `batch`, parameters held fixed.

    Raises:
        CannotSayError: the pair has no parameter.
    """
    if not pair.unconstrained_parameters:
        pair.materialize_parameters(*batch)
    # A fitted run is frozen; for the gradient its parameters move again, and are put back.
    frozen = {n: leaf.requires_grad for n, leaf in pair.unconstrained_parameters.items()}
    if not pair.unconstrained_parameters:
        raise CannotSayError("Neither the model nor the guide has a parameter.")
    leaves = list(pair.unconstrained_parameters.values())
    moments = [_Moments(leaf) for leaf in leaves]
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.requires_grad_(True)
        with isolated_rng(seed), pair.scope():
            for _ in range(replicates):
                for leaf in leaves:
                    leaf.grad = None
                pair.objective.loss_and_grads(pair.model, pair.guide, *batch)
                for leaf, moment in zip(leaves, moments, strict=True):
                    moment.add(leaf.grad, len(batch[0]))
    finally:
        for (name, leaf), gradient in zip(
            pair.unconstrained_parameters.items(), before, strict=True
        ):
            leaf.requires_grad_(frozen[name])
            leaf.grad = gradient
    groups = {n: m.group() for n, m in zip(pair.unconstrained_parameters, moments, strict=True)}
    return GradientQuality(groups, replicates, converged)


class _Moments:
    """Running sums over replicates of one parameter's gradient."""

    def __init__(self, leaf: Tensor) -> None:
        self.mean = torch.zeros_like(leaf, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)
        self.alive = torch.zeros_like(leaf, dtype=torch.bool)
        self.norms: list[float] = []

    def add(self, gradient: Tensor | None, rows: int) -> None:
        g = torch.zeros_like(self.mean) if gradient is None else gradient.double() / rows
        self.alive |= g != 0
        self.norms.append(float(g.norm()))
        deviation = g - self.mean  # Welford's update
        self.mean += deviation / len(self.norms)
        self.squares += deviation * (g - self.mean)

    def group(self) -> Group:
        R = len(self.norms)
        norms = torch.tensor(self.norms, dtype=torch.float64)
        noise = float(self.squares.sum()) / (R - 1)
        signal = max(float(self.mean.square().sum()) - noise / R, 0.0)
        median, tenth = float(norms.median()), float(norms.nan_to_num().quantile(0.9))
        tiny = 1e-12 * float(self.mean.square().sum())  # rounding of an exact gradient
        return Group(
            snr=math.sqrt(signal / noise) if noise > tiny else math.inf if signal else 0.0,
            norm=median,
            peak=float(norms.max()) / tenth if tenth > 0 else math.inf if norms.max() > 0 else 1.0,
            dead=float((~self.alive).double().mean()),
            finite=bool(torch.isfinite(norms).all()),
        )
