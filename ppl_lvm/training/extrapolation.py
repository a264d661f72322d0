"""Extrapolation of bounds to their limits.

Expectation-maximization converges geometrically: with gains g_t = L_t - L_{t-1} and rate
a = g_t / g_{t-1}, the remaining gains add up to (Aitken)

    g_t (a + a² + …) = g_t a / (1 - a).

Gradient steps converge as a power of the number of steps or faster,

    L_t = L - C t^{-a}.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SLOWEST, FASTEST = 0.25, 1.0  # powers of t
WINDOW = 1.5  # ratio of the steps at the ends of a window
PARTS = 10  # of a window at most, for the error of its mean


def aitken_remaining_gain(bounds: list[float]) -> float:
    """Estimated remaining gain from the last three bounds, nats per row.

    0 once gains are rounding error; infinite while gains still grow.
    """
    gain = bounds[-1] - bounds[-2]
    if gain <= 1e-15 * (1 + abs(bounds[-1])):
        return 0.0
    previous_gain = bounds[-2] - bounds[-3] if len(bounds) > 2 else 0.0
    if gain >= previous_gain:
        return float("inf")
    rate = gain / previous_gain
    return max(gain, gain * rate / (1 - rate))


def power_law_remaining_gain(gains: Sequence[float], log_steps: Sequence[float]) -> float:
    """Estimated remaining gain of gradient steps, nats per row.

    The last two gains determine C and a of L_t = L - C t^{-a}, with 1/4 ≤ a ≤ 1: a fast decrease
    of the gains may mean that some parameters are done while others have hardly begun. a is 1 where
    there is one gain only, or a negative one.

    Args:
        gains: of consecutive windows of steps.
        log_steps: their lengths in log t.
    """
    return _power_law(gains, log_steps)[0]


def _power_law(gains: Sequence[float], log_steps: Sequence[float]) -> tuple[float, float]:
    """The remaining gain, and the power a."""
    if len(gains) == 1 or min(gains[-2:]) <= 0:
        slopes = [g / d for g, d in zip(gains[-2:], log_steps[-2:], strict=True)]
        slope = max(slopes[-1], sum(slopes) / len(slopes), 0.0)
        gain, d, power = slope * log_steps[-1], log_steps[-1], FASTEST
    else:
        from scipy.optimize import brentq  # costs import time that few calls need

        (before, gain), (d1, d) = gains[-2:], log_steps[-2:]

        def excess(a: float) -> float:
            return math.log(-math.expm1(-a * d) / math.expm1(a * d1)) - math.log(gain / before)

        power = SLOWEST if excess(SLOWEST) <= 0 else FASTEST
        if excess(SLOWEST) > 0 > excess(FASTEST):
            power = brentq(excess, SLOWEST, FASTEST)
    return gain / math.expm1(power * d), power


def remaining_gain(bounds: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Estimated remaining gain of the noisy bounds of all steps, and its standard error.

    The means of three windows that end at the last step T, T / 1.5 and T / 1.5² are extrapolated;
    the errors of their gains come from the means of at most ten parts of each window.
    """
    values = np.asarray(bounds, np.float64)
    ends = [round(len(values) / WINDOW**k) for k in range(4)][::-1]
    count = max(2, min(PARTS, len(values) // 8))
    parts = [
        [part.mean() for part in np.array_split(values[a:b], count)]
        for a, b in itertools.pairwise(ends)
    ]
    means = [float(np.mean(part)) for part in parts]
    errors = [float(np.std(part, ddof=1)) / math.sqrt(count) for part in parts]
    d = math.log(WINDOW)
    gain, power = _power_law([means[1] - means[0], means[2] - means[1]], [d, d])
    scale = math.exp(-power * d / 2) / math.expm1(power * d)  # from the middle of the window on
    return gain * math.exp(-power * d / 2), math.hypot(errors[1], errors[2]) * scale
