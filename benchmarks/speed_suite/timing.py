"""Interleaved timing of functions, and medians of paired ratios.

The speed of a machine drifts. The functions are therefore called in an order that is shuffled in
every round, and a ratio is the median over rounds of the ratios within a round.
"""

import random
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    calls: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call: `rounds` values per function, each the mean of `calls` calls.

    `time.process_time` as the clock leaves out what other programs take from one thread.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    shuffle = random.Random(seed).shuffle
    order = list(functions)
    for turn in range(warmup + rounds):
        shuffle(order)
        for name in order:
            start = clock()
            for _ in range(calls):
                functions[name]()
            if turn >= warmup:
                times[name].append((clock() - start) / calls)
    return times


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4)
    return median(values), low, high


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> tuple[float, float, float]:
    """Median and quartiles of the paired ratios of two functions' times."""
    return spread([a / b for a, b in zip(times[of], times[to], strict=True)])
