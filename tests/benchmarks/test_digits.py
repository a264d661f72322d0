"""Benchmark of the VAE on digits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_lvm.benchmarks import digits
from ppl_lvm.benchmarks.harness import Result


@pytest.mark.slow
def test_digits_smoke_run_compares_both_programs(
    smoke: Callable[[str], tuple[Result, Path]],
) -> None:
    result, _ = smoke("digits")
    assert [row["objective"] for row in result["rows"]] == ["ELBO", "IWAE-5"]
    for row in result["rows"]:
        # Two epochs increase either from -44 (all pixels at 1/2) to about -30.
        assert -36 < row["ppl_lvm, nats"] < -22
        assert -36 < row["hand, nats"] < -22


def test_digits_difference_is_the_mean_over_seeds() -> None:
    rows = [
        {"objective": "ELBO", "difference": 0.3},
        {"objective": "ELBO", "difference": -0.1},
        {"objective": "IWAE-5", "difference": 0.3},
    ]
    assert digits.mean_difference(rows, "ELBO")["met"] is True
    assert digits.mean_difference(rows, "IWAE-5")["met"] is False
