"""Interleaved timing."""

import time

from ppl_lvm.benchmarks.speed_suite import timing


def test_ratio_is_the_median_of_paired_ratios() -> None:
    """A tenfold slowdown in the middle changes both times, but not their ratio."""
    times = {"a": [1.0, 1.0, 10.0, 10.0], "b": [2.0, 2.0, 20.0, 20.0]}
    assert timing.ratio(times, "b", "a") == (2.0, 2.0, 2.0)


def test_slower_function_has_larger_time() -> None:
    functions = {"fast": lambda: None, "slow": lambda: time.sleep(0.002)}
    times = timing.interleaved(functions, rounds=5)
    assert [len(values) for values in times.values()] == [5, 5]
    assert 0.002 <= timing.spread(times["slow"])[0] < 1  # seconds; a busy machine sleeps longer
    assert timing.ratio(times, "slow", "fast")[0] > 10
