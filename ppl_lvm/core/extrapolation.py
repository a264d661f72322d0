"""What a sequence that rises by a steady rate has still to gain (Aitken's extrapolation).

With gains g_t = L_t - L_{t-1} and rate a = g_t / g_{t-1}, the gains to come add up to

    g_t (a + a² + …) = g_t a / (1 - a).
"""


def aitken_remaining_gain(bounds: list[float]) -> float:
    """Nats per row that the last three bounds promise; 0 where gains are down to rounding."""
    gain = bounds[-1] - bounds[-2]
    if gain <= 1e-15 * (1 + abs(bounds[-1])):
        return 0.0
    before = bounds[-2] - bounds[-3] if len(bounds) > 2 else 0.0
    if gain >= before:
        return float("inf")
    rate = gain / before
    return max(gain, gain * rate / (1 - rate))
