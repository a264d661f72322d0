"""Has it converged? Slope and Monte-Carlo error of the bound, R̂, spread over restarts.

Over the last stretch of training (a fifth of its steps) the bound b_t is cut into 20 batches of
consecutive steps; a straight line through the batches' means gives

    gain = slope × length of the stretch,

what another such stretch would add if nothing changed, and its standard error, which neighbouring
steps' correlation does not make too small as that of single steps would be. Training has not
converged when the gain is both significant (|t| > 3) and large. The same stretch gives

    R̂ = √(((n − 1)/n W + B/n) / W)

over halves and chains of any iterates: bounds here, parameters in drift.py.

A bound without noise that never falls, as of expectation-maximisation, has no such scatter: of its
last three values the gain that lies ahead is judged instead (`ppl_lvm.training.extrapolation`).

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021). Rank-normalization, folding, and
    localization: an improved R̂. https://arxiv.org/abs/1903.08008 (split R̂ and 1.01)
    Dhaka et al. (2020). Robust, accurate stochastic optimization for variational inference.
    https://arxiv.org/abs/2009.00666 (R̂ over iterates)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.training.extrapolation import aitken_remaining_gain
from ppl_lvm.training.trajectory import PARTS, last_bounds, num_final_steps

QUESTION = "Has it converged?"
SIGNIFICANT = 3.5  # t, with 18 degrees of freedom: one false alarm in 390
SMALL, LARGE = 0.01, 0.1  # nats per row
ROUNDING = 1e-9  # relative; a bound may fall by this without noise
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Convergence:
    """Bounds in nats per row.

    Attributes:
        bound: mean over the last stretch, with `bound_error` from batch means.
        gain: slope times length of the stretch, with `gain_error`.
        r_hat: split R̂ of the stretch's batch means: halves against each other.
        steps: length of the stretch.
        restarts: final bounds of the restarts that may be chosen (empty: one start only).
        restarts_r_hat: split R̂ of those restarts' batch means of the bound; NaN where not kept.
    """

    bound: float
    bound_error: float
    gain: float
    gain_error: float
    r_hat: float
    steps: int
    restarts: tuple[float, ...]
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
        if len(self.restarts) > 1:
            rows.append(spread_finding(self.restarts))
            if math.isfinite(self.restarts_r_hat):
                rows.append(self._restarts_r_hat_finding())
        return rows

    def _gain_finding(self) -> Finding:
        verdict = graded(abs(self.gain), SMALL, LARGE) if self.significant else "good"
        if self.converged is None:
            verdict = "unknown"
        said = {
            "good": "no trend to speak of.",
            "unknown": "too noisy to tell a gain of this size from none.",
        }.get(verdict, "it still rises." if self.gain > 0 else "it still falls.")
        return Finding(
            QUESTION,
            f"gain of the bound over the last {self.steps} steps, nats per row",
            self.gain,
            self.gain_error,
            f"good ≤ {SMALL} or not significant (|t| ≤ {SIGNIFICANT}), bad > {LARGE}",
            PROJECT_DEFAULT,
            verdict,
            f"Bound there {self.bound:.4f} ± {self.bound_error:.4f}; " + said,
            ""
            if verdict == "good"
            else "Train longer."
            if self.gain > 0 or verdict == "unknown"
            else "Lower the learning rate or clip gradients; the optimiser diverges.",
        )

    def _r_hat_finding(self) -> Finding:
        # In as few batch means R̂ strays by chance; a trend too small to matter is let pass.
        meaningful = self.significant and abs(self.gain) > SMALL
        return Finding(
            QUESTION,
            "split R̂ of the bound over the last stretch",
            self.r_hat,
            None,
            "good ≤ 1.1 or gain above not significant, bad > 1.5",
            f"Dhaka et al. 2020, arXiv:2009.00666; levels: {PROJECT_DEFAULT}",
            graded(self.r_hat, 1.1, 1.5) if meaningful else "good",
            "The two halves of the last stretch against their own scatter.",
            "Train longer." if meaningful and self.r_hat > 1.1 else "",
        )

    def _restarts_r_hat_finding(self) -> Finding:
        # Without noise in the bound R̂ sees differences that matter to nobody.
        meaningful = max(self.restarts) - min(self.restarts) > LARGE
        verdict = graded(self.restarts_r_hat, 1.1, 1.5) if meaningful else "good"
        return Finding(
            QUESTION,
            f"R̂ of the bound over {len(self.restarts)} restarts",
            self.restarts_r_hat,
            None,
            f"good ≤ 1.1 or spread ≤ {LARGE}, bad > 1.5",
            f"Dhaka et al. 2020, arXiv:2009.00666; levels: {PROJECT_DEFAULT}",
            verdict,
            "The restarts' last stretches against their own scatter.",
            "" if verdict == "good" else "The starts end in different places: more restarts.",
        )


def spread_finding(restarts: Sequence[float]) -> Finding:
    """How far apart restarts ended."""
    best, low = max(restarts), min(restarts)
    reached = sum(b > best - LARGE for b in restarts)
    return Finding(
        QUESTION,
        f"spread of {len(restarts)} restarts' bounds (best − worst), nats per row",
        best - low,
        None,
        f"good ≤ {LARGE}; bad if only one restart came within {LARGE} of the best",
        PROJECT_DEFAULT,
        "good" if best - low <= LARGE else "bad" if reached == 1 else "warning",
        f"{reached} of {len(restarts)} came within {LARGE} nats of the best; sd "
        f"{np.std(restarts, ddof=1):.3f}.",
        "" if best - low <= LARGE else "More restarts: the bound has several optima.",
    )


@dataclass(frozen=True)
class MonotoneConvergence:
    """Of a bound without noise, nats per row.

    Attributes:
        bound: the last. ahead: what its shrinking gains promise. steps: how many there were.
        restarts: final bounds of the restarts that may be chosen.
    """

    bound: float
    ahead: float
    steps: int
    restarts: tuple[float, ...]

    @property
    def converged(self) -> bool:
        return self.ahead <= SMALL

    def findings(self) -> list[Finding]:
        verdict = graded(self.ahead, SMALL, LARGE)
        row = Finding(
            QUESTION,
            "gain that lies ahead of a bound that never falls, nats per row",
            self.ahead,
            None,
            f"good ≤ {SMALL}, bad > {LARGE}",
            f"Böhning et al. 1994; levels: {PROJECT_DEFAULT}",
            verdict,
            f"Bound {self.bound:.4f} after {self.steps} iterations, by the rate at which gains "
            "shrink.",
            "" if verdict == "good" else "More iterations (max_iterations), a smaller tolerance.",
        )
        return [row] + ([spread_finding(self.restarts)] if len(self.restarts) > 1 else [])


def climb(
    history: Mapping[str, Sequence[float]], restarts: Sequence[float] = ()
) -> MonotoneConvergence:
    """From a history whose bound never falls.

    Raises:
        CannotSayError: it falls somewhere, or has fewer than three values.
    """
    bounds = [float(b) for b in history["bound"]]
    if len(bounds) < 3:
        raise CannotSayError(f"{len(bounds)} iterations tell no rate; three are needed.")
    if min(np.diff(bounds)) < -ROUNDING * (1 + abs(bounds[-1])):
        raise CannotSayError("The bound falls somewhere: it has noise, or a step is wrong.")
    return MonotoneConvergence(
        bounds[-1], aitken_remaining_gain(bounds), len(bounds), tuple(restarts)
    )


def convergence(
    history: Mapping[str, Sequence[float]],
    restarts: Sequence[float] = (),
    restarts_bounds: Sequence[ArrayLike] = (),
) -> Convergence:
    """From a run's history ("bound": one value a step) and its restarts.

    Args:
        restarts: final bounds of the restarts that may be chosen.
        restarts_bounds: of each, the means of the bound over 20 parts of its last stretch.

    Raises:
        CannotSayError: fewer than 100 steps, or a bound that is not finite in the last stretch.
    """
    bounds = np.asarray(history["bound"], np.float64)
    if len(bounds) < 100:
        raise CannotSayError(f"The history has {len(bounds)} steps; 100 are needed to see a trend.")
    means = last_bounds(bounds).numpy()
    if not np.isfinite(means).all():
        raise CannotSayError("The bound is not finite in the last stretch: training broke down.")
    slope, slope_error = _line(means)
    return Convergence(
        bound=float(means.mean()),
        bound_error=float(means.std(ddof=1) / math.sqrt(PARTS)),
        gain=slope * PARTS,
        gain_error=slope_error * PARTS,
        r_hat=float(r_hat(means[None])),
        steps=num_final_steps(len(bounds)),
        restarts=tuple(restarts),
        restarts_r_hat=float(r_hat(np.stack(restarts_bounds)))
        if len(restarts_bounds) > 1
        else math.nan,
    )


def _line(y: Floats) -> tuple[float, float]:
    """Least-squares slope per position and its standard error."""
    t = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(t @ y / (t @ t))
    rest = y - y.mean() - slope * t
    return slope, math.sqrt(float(rest @ rest) / (len(y) - 2) / float(t @ t))


def r_hat(chains: ArrayLike) -> Floats:
    """Split R̂ of iterates (M, n, ...): M chains (restarts) of n steps, each cut in halves."""
    x = np.asarray(chains, np.float64)
    half = x.shape[1] // 2
    if half < 2:
        raise ValueError(f"r_hat needs at least 4 iterates a chain, got {x.shape[1]}.")
    halves = np.concatenate([x[:, :half], x[:, -half:]])  # (2M, n/2, ...)
    within = halves.var(1, ddof=1).mean(0)
    between = halves.mean(1).var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (half - 1) / half + between / within
    still = (within == 0) & (between == 0)  # iterates that do not move have converged
    return np.asarray(np.sqrt(np.where(still, 1.0, ratio)))
