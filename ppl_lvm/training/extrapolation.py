"""Aitken extrapolation: remaining increase of a geometrically converging sequence.

With gains g_t = L_t - L_{t-1} and rate a = g_t / g_{t-1}, the remaining gains add up to

    g_t (a + a² + …) = g_t a / (1 - a).
"""


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
