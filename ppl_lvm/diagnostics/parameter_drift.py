"""Drift of the parameters: R̂ over iterates and over restarts.

A bound whose slope is hidden by noise may rest on parameters that still move. The second half of
the recorded iterates θ_t (`ppl_lvm.training.trajectory`) is cut in two, and in eight. A scalar
parameter drifts if

    R̂ > 1.2,    |mean of one half − mean of the other| > 5% of its range over the run,
    and the means of the eight parts rise, or fall, without exception.

The first condition excludes noise about a point. The second excludes the tail of an approach
without noise. The third excludes slow fluctuation about the optimum: iterates of a constant
learning rate are as autocorrelated as a slow Markov chain. The bound does not identify weights of
network layers (signs, orders, scales of hidden units). They drift although the function that they
compute stands still, so they are counted separately and never make a fit bad.

Over restarts whose bounds agree, R̂ of the same scalars tells if the parameters agree too. If not,
the model has symmetries or several optima, and parameters may not be averaged over restarts.

References:
    Dhaka et al. (2020). Robust, accurate stochastic optimization for variational inference.
    https://arxiv.org/abs/2009.00666
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.types import Floats
from ppl_lvm.diagnostics.base import Context, Diagnostic, Restarts, as_restarts
from ppl_lvm.diagnostics.convergence import QUESTION, R_HAT_SOURCE, r_hat
from ppl_lvm.diagnostics.finding import Finding, Threshold
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

LEVEL, MIN_SHIFT, PARTS = 1.2, 0.05, 8
MIN_RECORDS = 80  # so that each part has five
LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.RNNBase, nn.Embedding)

DRIFT = Threshold(
    good=0.1,
    bad=0.5,
    source=R_HAT_SOURCE,
    text=f"R̂ > {LEVEL}, steadily and by > {MIN_SHIFT:.0%} of the range; good ≤ 0.1, bad > 0.5",
)
DISAGREEMENT = replace(DRIFT, text=f"R̂ > {LEVEL}; good ≤ 0.1")


@dataclass(frozen=True)
class ParameterDrift:
    """Drift of every recorded scalar parameter, by parameter name.

    Attributes:
        r_hat: (c,) split R̂ of the recorded scalars over the run's second half.
        shift: (c,) distance between the means of the two halves, relative to the range.
        monotone: (c,) True where the means of the parts rise or fall without exception.
        between: (c,) R̂ over restarts; empty where fewer than two agree in bound.
        layers: names of weights of network layers.
        num_restarts: number of restarts that `between` compares.
    """

    r_hat: dict[str, Floats]
    shift: dict[str, Floats]
    monotone: dict[str, NDArray[np.bool_]]
    between: dict[str, Floats]
    layers: frozenset[str]
    num_restarts: int

    def drifting(self, name: str) -> float:
        """Share of a parameter's recorded scalars that drift."""
        moves = (self.r_hat[name] > LEVEL) & (self.shift[name] > MIN_SHIFT)
        return float((moves & self.monotone[name]).mean())

    def findings(self) -> list[Finding]:
        return [self._within_finding()] + ([self._between_finding()] if self.between else [])

    def _within_finding(self) -> Finding:
        identified = [n for n in self.r_hat if n not in self.layers]
        shares = {n: self.drifting(n) for n in identified or self.r_hat}
        sizes = np.array([len(self.r_hat[n]) for n in shares])
        share = float(np.array(list(shares.values())) @ sizes / sizes.sum())
        verdict = DRIFT.grade(share)
        worst = max(shares, key=lambda n: shares[n])
        why = f"Largest share {shares[worst]:.0%}: {_short(worst)}." if share else ""
        if not identified:
            verdict = "good" if verdict == "good" else "unknown"
            why += " All are weights of network layers, which the bound does not identify."
        elif self.layers:
            of_layers = np.mean([self.drifting(n) for n in sorted(self.layers)])
            why += f" Weights of network layers, not counted: {of_layers:.0%}."
        return DRIFT.finding(
            QUESTION,
            "share of scalar parameters that drift",
            share,
            verdict=verdict,
            why=why.strip() or "Their means over two parts of the run's second half agree.",
            remedy="" if verdict == "unknown" else "Train longer, or with a falling learning rate.",
        )

    def _between_finding(self) -> Finding:
        scalars = np.concatenate(list(self.between.values()))
        share = float((scalars > LEVEL).mean())
        agree = share <= DISAGREEMENT.good
        return DISAGREEMENT.finding(
            QUESTION,
            f"share of scalar parameters that differ between {self.num_restarts} restarts of equal "
            "bound",
            share,
            verdict="good" if agree else "unknown",
            why="Restarts reached the same parameters."
            if agree
            else "Equal bounds, other parameters: labels, signs or rotations, or several optima.",
            remedy="Do not average parameters over restarts; relabel first.",
        )


def parameter_drift(
    pair: ModelGuidePair,
    trajectories: Sequence[Trajectory],
    bounds: Sequence[float] | Restarts,
    chosen: int = 0,
) -> ParameterDrift:
    """Drift within the chosen restart, and agreement with restarts of equal bound.

    Args:
        pair: the fitted pair; its modules tell which parameters belong to layers.
        trajectories: one per restart.
        bounds: final bounds of the restarts, nats per row, or the restarts.
        chosen: index of the restart that is the fit.

    Raises:
        CannotSayError: fewer than 80 records.
    """
    if not trajectories or not trajectories[chosen].iterates:
        raise CannotSayError(
            "No iterates were recorded (only gradient-based training does).",
            verdict="not applicable",
        )
    iterates = {n: t.double().numpy() for n, t in trajectories[chosen].iterates.items()}
    T = len(next(iter(iterates.values())))
    if T < MIN_RECORDS:
        raise CannotSayError(
            f"{T} records of the parameters; {MIN_RECORDS} are needed.", "Raise num_steps."
        )
    within = {n: _within(x) for n, x in iterates.items()}
    reached = as_restarts(bounds).reached_best
    equal = [t.iterates for t, r in zip(trajectories, reached, strict=True) if t.iterates and r]
    return ParameterDrift(
        {n: w[0] for n, w in within.items()},
        {n: w[1] for n, w in within.items()},
        {n: w[2] for n, w in within.items()},
        _between(equal) if len(equal) > 1 else {},
        frozenset(layer_weights(pair) & iterates.keys()),
        len(equal),
    )


def _within(x: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """R̂ (c,), relative shift (c,) and monotonicity (c,) of iterates (T, c)."""
    late = x[len(x) // 2 :]
    half = len(late) // 2
    distance = np.abs(late[:half].mean(0) - late[-half:].mean(0))
    extent = np.ptp(x, axis=0)
    rise = np.diff(np.stack([part.mean(0) for part in np.array_split(late, PARTS)]), axis=0)
    monotone = np.abs(np.sign(rise).sum(0)) == len(rise)
    return r_hat(late[None]), distance / np.where(extent > 0, extent, 1.0), monotone


def _between(restarts: Sequence[Mapping[str, object]]) -> dict[str, Floats]:
    """R̂ (c,) over restarts of the second half of their records."""
    r_hats = {}
    for name in restarts[0]:
        iterates = [np.asarray(r[name], np.float64) for r in restarts]
        rows = min(len(x) for x in iterates) // 2
        late = np.stack([x[-rows:] for x in iterates])  # (M, T/2, c)
        distance = np.ptp(late.mean(1), axis=0)
        extent = np.ptp(np.concatenate(iterates), axis=0)
        # Without noise R̂ reports differences that do not matter.
        r_hats[name] = np.where(distance > MIN_SHIFT * extent, r_hat(late), 1.0)
    return r_hats


def layer_weights(pair: ModelGuidePair) -> set[str]:
    """Names of the parameters that belong to torch's layers."""
    names = set()
    for owner, module in pair.modules():
        for path, part in module.named_modules():
            if isinstance(part, LAYERS):
                prefix = f"{owner}/{path}." if path else f"{owner}/"
                names |= {prefix + name for name, _ in part.named_parameters(recurse=False)}
    return names


def _short(name: str) -> str:
    return name.partition("/")[2] or name


def _run(context: Context) -> ParameterDrift:
    restarts = context.restarts
    return parameter_drift(
        context.pair,
        restarts.trajectories,
        restarts,
        restarts.chosen,
    )


PARAMETER_DRIFT = Diagnostic(
    slug="drift", question=QUESTION, title="drift of the parameters", run=_run
)
