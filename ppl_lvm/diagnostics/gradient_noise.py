"""Signal and noise of the gradient; dead and exploding parameters.

From R gradients g_r at fixed parameters, per parameter group with mean ḡ and per-element variance
s²:

    signal²  = max(|ḡ|² − Σ s²/R, 0)       (|ḡ|² less the contribution of its noise)
    SNR      = signal / √Σ s²

At a solution the signal vanishes and SNR ≈ 0. A low SNR is a fault of the estimator only while the
bound still rises: then, below 0.05, the group does not learn (Rainforth et al. 2018). A parameter
whose gradient is exactly zero every time is dead: the bound does not depend on it.

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
from ppl_lvm.diagnostics.base import Context, Diagnostic
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold, Verdict
from ppl_lvm.programs.pair import ModelGuidePair

QUESTION = "Is the gradient good?"

DEAD = Threshold(good=0.0, bad=0.0, text="good 0, bad more")
PEAK = Threshold(good=10.0, bad=100.0, text="good ≤ 10, bad > 100 or not finite")
SNR_NAME = "signal-to-noise ratio of the gradient, worst parameter"
SNR = Threshold(
    good=0.05,
    bad=0.05,
    larger_is_better=True,
    source=f"Rainforth et al. 2018, arXiv:1802.04537; level: {PROJECT_DEFAULT}",
    text="bad < 0.05 while the bound still changes",
)


@dataclass(frozen=True)
class GradientStatistics:
    """Gradients of one parameter tensor, per row.

    Attributes:
        snr: signal-to-noise ratio; inf where there is signal and no noise.
        norm: median over replicates of the gradient's norm.
        peak: largest norm over the 90% quantile of norms. (Over the median it would be large for
            sound gradients too: a scale's are like ε² − 1.)
        dead: share of elements whose gradient was zero in every replicate.
        finite: True if all replicates were finite.
    """

    snr: float
    norm: float
    peak: float
    dead: float
    finite: bool


@dataclass(frozen=True)
class GradientQuality:
    """Gradient statistics of every parameter.

    Attributes:
        groups: parameter name -> `GradientStatistics`.
        replicates: R.
        converged: state of training; None if unknown.
    """

    groups: dict[str, GradientStatistics]
    replicates: int
    converged: bool | None

    @property
    def dead(self) -> list[str]:
        return [name for name, g in self.groups.items() if g.dead == 1.0]

    @property
    def exploding(self) -> list[str]:
        return [n for n, g in self.groups.items() if not g.finite or g.peak > PEAK.bad]

    def findings(self) -> list[Finding]:
        return [self._dead_finding(), self._exploding_finding(), self._snr_finding()]

    def _dead_finding(self) -> Finding:
        return DEAD.finding(
            QUESTION,
            "parameters that never have a gradient",
            float(len(self.dead)),
            why=f"Never a gradient: {', '.join(self.dead)}."
            if self.dead
            else f"All {len(self.groups)} have one.",
            remedy="Remove them, or find what cuts them from the bound (detach, an unused branch, "
            "saturated units).",
        )

    def _exploding_finding(self) -> Finding:
        not_finite = [n for n, g in self.groups.items() if not g.finite]
        peaks = [g.peak for g in self.groups.values() if g.finite]
        return PEAK.finding(
            QUESTION,
            "largest gradient norm / its 90% quantile, worst parameter",
            math.inf if not_finite else max(peaks, default=math.inf),
            why=f"Not finite: {', '.join(not_finite)}."
            if not_finite
            else f"{self.replicates} gradients at the same parameters.",
            remedy="Clip gradients (clip_norm), or use more particles.",
        )

    def _snr_finding(self) -> Finding:
        live = {n: g.snr for n, g in self.groups.items() if g.dead < 1 and g.finite}
        if not live:
            return Finding(
                question=QUESTION, name=SNR_NAME, why="No gradient is finite and nonzero."
            )
        worst = min(live, key=lambda n: live[n])
        training = {
            False: "Training has not converged.",
            True: "Training has converged, where the signal vanishes.",
            None: "Convergence of training is unknown.",
        }[self.converged]
        if self.converged or math.isinf(live[worst]):
            why = training if self.converged else "The gradient has no noise."
            verdict: Verdict = "not applicable" if self.converged else "exact"
            return Finding(question=QUESTION, name=SNR_NAME, why=why, verdict=verdict)
        verdict = "unknown" if self.converged is None else SNR.grade(live[worst])
        return SNR.finding(
            QUESTION,
            SNR_NAME,
            live[worst],
            1 / math.sqrt(2 * self.replicates),
            verdict=verdict,
            why=f"{worst}; median over parameters {sorted(live.values())[len(live) // 2]:.2g}. "
            f"{training}",
            remedy="More particles, a lower-variance estimator, or a larger batch."
            if verdict == "bad"
            else "",
        )


def gradient_quality(
    pair: ModelGuidePair,
    *batch: Any,
    replicates: int = 100,
    converged: bool | None = None,
    seed: int = 0,
) -> GradientQuality:
    """Statistics of R = `replicates` gradients of the pair's objective at fixed parameters.

    Raises:
        CannotSayError: the pair has no parameters.
    """
    if not pair.unconstrained_parameters:
        pair.materialize_parameters(*batch)
    parameters = pair.unconstrained_parameters
    if not parameters:
        raise CannotSayError(
            "Neither the model nor the guide has a parameter.", verdict="not applicable"
        )
    leaves = list(parameters.values())
    moments = [_Moments(leaf) for leaf in leaves]
    # The parameters of a fitted run are frozen; both flags and gradients are restored.
    before = [(leaf.requires_grad, leaf.grad) for leaf in leaves]
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
        for leaf, (requires_grad, gradient) in zip(leaves, before, strict=True):
            leaf.requires_grad_(requires_grad)
            leaf.grad = gradient
    groups = {n: m.statistics() for n, m in zip(parameters, moments, strict=True)}
    return GradientQuality(groups, replicates, converged)


class _Moments:
    """Running sums over replicates of one parameter's gradient."""

    def __init__(self, leaf: Tensor) -> None:
        self.mean = torch.zeros_like(leaf, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)
        self.nonzero = torch.zeros_like(leaf, dtype=torch.bool)
        self.norms: list[float] = []

    def add(self, gradient: Tensor | None, rows: int) -> None:
        g = torch.zeros_like(self.mean) if gradient is None else gradient.double() / rows
        self.nonzero |= g != 0
        self.norms.append(float(g.norm()))
        deviation = g - self.mean  # Welford's update
        self.mean += deviation / len(self.norms)
        self.squares += deviation * (g - self.mean)

    def statistics(self) -> GradientStatistics:
        R = len(self.norms)
        norms = torch.tensor(self.norms, dtype=torch.float64)
        noise = float(self.squares.sum()) / (R - 1)
        signal = max(float(self.mean.square().sum()) - noise / R, 0.0)
        upper = float(norms.nan_to_num().quantile(0.9))
        rounding = 1e-12 * float(self.mean.square().sum())  # of an exact gradient
        return GradientStatistics(
            snr=math.sqrt(signal / noise) if noise > rounding else math.inf if signal else 0.0,
            norm=float(norms.median()),
            peak=float(norms.max()) / upper if upper > 0 else math.inf if norms.max() > 0 else 1.0,
            dead=float((~self.nonzero).double().mean()),
            finite=bool(torch.isfinite(norms).all()),
        )


def _run(context: Context) -> GradientQuality:
    convergence = context.results.get("convergence")
    return gradient_quality(
        context.pair,
        *context.train,
        converged=None if convergence is None else convergence.converged,
        seed=context.seed,
    )


GRADIENT_NOISE = Diagnostic(slug="gradient", question=QUESTION, title="gradient", run=_run)
