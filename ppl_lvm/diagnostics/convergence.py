"""Convergence of the bound: trend, split R̂, spread over restarts.

Over the last stretch of training (a fifth of its steps) the bound b_t is cut into 20 batches of
consecutive steps. A straight line through the batch means gives

    gain = slope × length of the stretch,

the increase over another stretch if the trend continued, and its standard error. Batch means allow
for the correlation of neighboring steps, which single steps would not. Training has not converged
if the gain is both significant (|t| > 3.5) and large. The same stretch gives

    R̂ = √(((n − 1)/n W + B/n) / W)

over halves and chains of any iterates: bounds here, parameters in parameter_drift.py.

A training that predicts at its end what more steps would gain (`ppl_lvm.training.arrival`) is
judged by that: the end of a branch with a falling rate shows no trend.

A bound without noise that never falls, as in expectation-maximization, has no such scatter. Its
remaining gain is extrapolated from its last three values (`ppl_lvm.training.extrapolation`).

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and
    localization: an improved R̂. https://arxiv.org/abs/1903.08008 (split R̂ and 1.01)
    Dhaka et al. (2020). Robust, accurate stochastic optimization for variational inference.
    https://arxiv.org/abs/2009.00666 (R̂ over iterates)
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.types import Floats
from ppl_lvm.diagnostics.base import USES, Context, Diagnostic, Restarts, as_restarts
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold, Verdict
from ppl_lvm.training.extrapolation import aitken_remaining_gain
from ppl_lvm.training.trajectory import PARTS, last_bounds, num_final_steps

QUESTION = "Has it converged?"
SIGNIFICANT = 3.5  # t, with 18 degrees of freedom: one false positive in 390
SMALL, LARGE = 0.01, 0.1  # nats per row
ROUNDING = 1e-9  # relative; a bound without noise may fall by this
MIN_STEPS = 100

GAIN = Threshold(
    good=SMALL,
    bad=LARGE,
    text=f"good ≤ {SMALL} or not significant (|t| ≤ {SIGNIFICANT}), bad > {LARGE}",
)
PREDICTED_GAIN = Threshold(
    good=SMALL,
    bad=LARGE,
    source="Welandawe et al. 2022, arXiv:2203.15945; levels: " + PROJECT_DEFAULT,
    text=f"good: below the accuracy of the fit; bad > {LARGE}",
)
REMAINING_GAIN = Threshold(
    good=SMALL, bad=LARGE, source=f"Böhning et al. 1994; levels: {PROJECT_DEFAULT}"
)
R_HAT_SOURCE = f"Dhaka et al. 2020, arXiv:2009.00666; levels: {PROJECT_DEFAULT}"
R_HAT = Threshold(good=1.1, bad=1.5, source=R_HAT_SOURCE)
REACHED = Threshold(
    good=0.8,
    bad=0.0,
    larger_is_better=True,
    text="good: at least 4 of 5; bad: only the best one itself",
)


@dataclass(frozen=True)
class Convergence:
    """Convergence of a noisy bound, in nats per row.

    Attributes:
        bound: mean over the last stretch, with `bound_error` from batch means.
        gain: slope times length of the stretch, with `gain_error`.
        r_hat: split R̂ of the stretch's batch means: halves against each other.
        steps: length of the stretch.
        restarts: the eligible restarts (at most one if there was no other).
        restarts_r_hat: split R̂ of the restarts' batch means; NaN where they were not recorded.
    """

    bound: float
    bound_error: float
    gain: float
    gain_error: float
    r_hat: float
    steps: int
    restarts: Restarts
    restarts_r_hat: float = math.nan

    @property
    def significant(self) -> bool:
        return abs(self.gain) > SIGNIFICANT * self.gain_error

    @property
    def converged(self) -> bool | None:
        """None where the bound is too noisy to tell: a large gain that is not significant."""
        if self.significant:
            return abs(self.gain) <= SMALL
        return None if abs(self.gain) > LARGE else True

    def findings(self) -> list[Finding]:
        rows = [self._gain_finding(), self._r_hat_finding()]
        if len(self.restarts.bounds) > 1:
            rows.append(spread_finding(self.restarts))
            if math.isfinite(self.restarts_r_hat):
                rows.append(self._restarts_r_hat_finding())
        return rows

    def _gain_finding(self) -> Finding:
        verdict = GAIN.grade(abs(self.gain)) if self.significant else "good"
        if self.converged is None:
            verdict = "unknown"
        trend = {
            "good": "no trend to speak of.",
            "unknown": "too noisy to tell a gain of this size from none.",
        }.get(verdict, "it still rises." if self.gain > 0 else "it still falls.")
        return GAIN.finding(
            QUESTION,
            f"gain of the bound over the last {self.steps} steps, nats per row",
            self.gain,
            self.gain_error,
            verdict=verdict,
            why=f"Bound there {self.bound:.4f} ± {self.bound_error:.4f}; {trend}",
            remedy="Train longer."
            if self.gain > 0 or verdict == "unknown"
            else "Lower the learning rate or clip gradients; the optimizer diverges.",
        )

    def _r_hat_finding(self) -> Finding:
        # R̂ of so few batch means is noisy, so it is graded only if the gain matters.
        return _graded_r_hat(
            "split R̂ of the bound over the last stretch",
            self.r_hat,
            self.significant and abs(self.gain) > SMALL,
            why="The two halves of the last stretch against their scatter.",
            otherwise="the gain above is small or not significant, and R̂ of so few means is noise.",
            remedy="Train longer.",
        )

    def _restarts_r_hat_finding(self) -> Finding:
        # Without noise in the bound R̂ reports differences that do not matter.
        return _graded_r_hat(
            f"R̂ of the bound over {len(self.restarts.bounds)} restarts",
            self.restarts_r_hat,
            spread_finding(self.restarts).verdict != "good",
            why="The restarts' last stretches against their scatter.",
            otherwise="enough restarts reached the best bound, and R̂ reports differences between "
            "the others.",
            remedy="The restarts end at different bounds: use more restarts.",
        )


def _graded_r_hat(
    name: str, value: float, matters: bool, *, why: str, otherwise: str, remedy: str
) -> Finding:
    """The row of an R̂; "not applicable" where it is high, but nothing that matters differs."""
    if matters or value <= R_HAT.good:
        return R_HAT.finding(QUESTION, name, value, why=why, remedy=remedy)
    why = f"Of no meaning at {value:.3g}: {otherwise}"
    return Finding(question=QUESTION, name=name, verdict="not applicable", why=why)


def spread_finding(restarts: Restarts) -> Finding:
    """The row on the number of restarts that reached the best bound.

    Bounds are equal within 2 nats of all rows together, the gain that more steps would bring, and
    three errors of the difference. Restarts that begin equal, at the bounds `initial_bounds`, end
    equal: their agreement says nothing.
    """
    bounds, initial, count = restarts.bounds, restarts.initial_bounds, len(restarts.bounds)
    reached = restarts.reached_best
    close, best = sum(reached), max(bounds)
    name = f"restarts that reached the best bound, of {count}"
    if len(initial) > 1 and close == count and max(initial) - min(initial) <= SMALL:
        return REACHED.finding(
            QUESTION,
            name,
            close,
            verdict="unknown",
            why=f"All restarts begin within {SMALL} nats of {max(initial):.4f}, so their agreement "
            "is no evidence.",
            remedy="Restarts from other initial values: draw more of them in the model's "
            "initialize_restart.",
        )
    total = restarts.rows or 1
    unit = "nats" if restarts.rows else "nats per row"
    lower = sorted(total * (best - b) for b, r in zip(bounds, reached, strict=True) if not r)
    text = f"{close} of {count} reached the optimum"
    if lower:
        amount = f"{lower[0]:.3g}" + (f" to {lower[-1]:.3g}" if len(lower) > 1 else "")
        text += f"; {len(lower)} {'is' if len(lower) == 1 else 'are'} {amount} {unit} lower"
    limit = f"within {total * restarts.near:.2g} {unit}" + (
        f" of all {total} rows" if restarts.rows else ""
    )
    return REACHED.finding(
        QUESTION,
        name,
        close,
        verdict="good" if close >= REACHED.good * count else "bad" if close == 1 else "warning",
        why=f"{text} ({limit} and 3 errors).",
        remedy="More restarts: the bound has several optima.",
    )


@dataclass(frozen=True)
class MonotoneConvergence:
    """Convergence of a bound without noise, in nats per row.

    Attributes:
        bound: the last value.
        remaining: increase extrapolated from the last three values.
        steps: number of values.
        restarts: the eligible restarts.
    """

    bound: float
    remaining: float
    steps: int
    restarts: Restarts

    @property
    def converged(self) -> bool:
        return self.remaining <= SMALL

    def findings(self) -> list[Finding]:
        row = REMAINING_GAIN.finding(
            QUESTION,
            "remaining gain of a bound that never falls, nats per row",
            self.remaining,
            why=f"Bound {self.bound:.4f} after {self.steps} iterations, extrapolated from the rate "
            "at which gains shrink.",
            remedy="More iterations (max_iterations), or a smaller tolerance.",
        )
        return [row, *([spread_finding(self.restarts)] if len(self.restarts.bounds) > 1 else [])]


def monotone_convergence(
    history: Mapping[str, Sequence[float]],
    restarts: Sequence[float] | Restarts = (),
) -> MonotoneConvergence:
    """Convergence of a history whose bound never falls.

    Raises:
        CannotSayError: the bound falls, or has fewer than three values.
    """
    bounds = [float(b) for b in history["bound"]]
    if len(bounds) < 3:
        raise CannotSayError(
            f"{len(bounds)} iterations are too few for a rate; at least three are needed.",
            "Raise max_iterations.",
        )
    if min(np.diff(bounds)) < -ROUNDING * (1 + abs(bounds[-1])):
        raise CannotSayError("The bound falls somewhere: it is noisy, or a step is wrong.")
    return MonotoneConvergence(
        bounds[-1], aitken_remaining_gain(bounds), len(bounds), as_restarts(restarts)
    )


def convergence(
    history: Mapping[str, Sequence[float]],
    restarts: Sequence[float] | Restarts = (),
    batch_means: Sequence[ArrayLike] = (),
) -> Convergence:
    """Convergence of a history ("bound": one value per step) and of its restarts.

    Args:
        restarts: the eligible restarts, or their final bounds.
        batch_means: of each restart, the means of the bound over 20 parts of its last stretch.

    Raises:
        CannotSayError: fewer than 100 steps, or a bound that is not finite in the last stretch.
    """
    bounds = np.asarray(history["bound"], np.float64)
    if len(bounds) < MIN_STEPS:
        raise CannotSayError(
            f"The history has {len(bounds)} steps; {MIN_STEPS} are needed to see a trend.",
            "Raise num_steps.",
        )
    means = last_bounds(bounds).numpy()
    if not np.isfinite(means).all():
        raise CannotSayError(
            "The bound is not finite in the last stretch: training broke down.",
            "Lower the learning rate, or clip gradients (clip_norm).",
        )
    slope, slope_error = _least_squares_slope(means)
    return Convergence(
        bound=float(means.mean()),
        bound_error=float(means.std(ddof=1) / math.sqrt(PARTS)),
        gain=slope * PARTS,
        gain_error=slope_error * PARTS,
        r_hat=float(r_hat(means[None])),
        steps=num_final_steps(len(bounds)),
        restarts=as_restarts(restarts),
        restarts_r_hat=float(r_hat(np.stack(batch_means))) if len(batch_means) > 1 else math.nan,
    )


def _least_squares_slope(y: Floats) -> tuple[float, float]:
    """Slope per position and its standard error."""
    t = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(t @ y / (t @ t))
    residual = y - y.mean() - slope * t
    return slope, math.sqrt(float(residual @ residual) / (len(y) - 2) / float(t @ t))


def r_hat(chains: ArrayLike) -> Floats:
    """Split R̂ of iterates (M, n, ...): M chains (restarts) of n steps, each cut in halves."""
    x = np.asarray(chains, np.float64)
    half = x.shape[1] // 2
    if half < 2:
        raise ValueError(f"r_hat needs at least 4 iterates per chain, got {x.shape[1]}.")
    halves = np.concatenate([x[:, :half], x[:, -half:]])  # (2M, n/2, ...)
    within = halves.var(1, ddof=1).mean(0)
    between = halves.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (half - 1) / half + between / within
    constant = (within == 0) & (between == 0)  # iterates that do not move have converged
    return np.asarray(np.sqrt(np.where(constant, 1.0, ratio)))


@dataclass(frozen=True)
class PredictedConvergence:
    """Prediction of a training at its end, in nats per row.

    Attributes:
        converged: None where noise hides the gain.
        gain: of more steps.
        steps: taken so far.
        remedy: what to do if it has not converged.
        restarts: see `Convergence`.
    """

    converged: bool | None
    gain: float
    steps: int
    remedy: str
    restarts: Restarts = field(default_factory=Restarts)

    def findings(self) -> list[Finding]:
        verdict: Verdict = "bad" if self.gain > LARGE else "warning"
        if self.converged is not False:
            verdict = "good" if self.converged else "unknown"
        row = PREDICTED_GAIN.finding(
            QUESTION,
            "predicted gain of more steps, nats per row",
            self.gain,
            verdict=verdict,
            why=f"After {self.steps:,} steps.",
            remedy=self.remedy or "Raise num_steps.",
        )
        return [row, *([spread_finding(self.restarts)] if len(self.restarts.bounds) > 1 else [])]


def _run(context: Context) -> Convergence | MonotoneConvergence | PredictedConvergence:
    restarts = context.restarts
    if restarts.arrival:
        a = restarts.arrival
        return PredictedConvergence(
            a["converged"],
            a["predicted_gain"],
            a["steps"],
            a["remedy"],
            restarts,
        )
    with contextlib.suppress(CannotSayError):  # a bound that falls is noisy
        return monotone_convergence(context.history, restarts)
    means = [t.bounds for t in restarts.trajectories if len(t.bounds)]
    return convergence(context.history, restarts, means)


CONVERGENCE = Diagnostic(
    slug="convergence",
    question=QUESTION,
    title="convergence of the bound",
    run=_run,
    spoils=USES,
)
