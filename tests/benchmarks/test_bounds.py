"""Benchmark of bounds against K and α."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_lvm.benchmarks import bounds
from ppl_lvm.benchmarks.harness import Result

GAP, ERROR = "log p(x) - bound, nats", "± (standard error)"


@pytest.fixture(scope="module")
def result(smoke: Callable[[str], tuple[Result, Path]]) -> Result:
    return smoke("bounds")[0]


@pytest.mark.slow
def test_sampled_bounds_agree_with_exact_values(result: Result) -> None:
    compared = [row for row in result["rows"] if row["K"] and row["exact"] is not None]
    assert len(compared) == 3 * 2 * len(bounds.ALPHAS)
    for row in compared:
        assert abs(row[GAP] - row["exact"]) < 5 * row[ERROR], row


@pytest.mark.slow
def test_bounds_are_ordered_in_alpha_and_particles(result: Result) -> None:
    for program in ("belief_net", "linear_gaussian", "decoders"):
        exact = {
            (row["bound"], row["K"]): row["exact"]
            for row in result["rows"]
            if row["program"] == program
        }
        two = [exact[name, 2] for name in ("α = -2", "IWAE", "α = 0.5", "ELBO", "α = 2")]
        assert two == sorted(two)  # the gap increases with α
        assert two[0] < two[-1]
        assert exact["IWAE", 2] < exact["IWAE", 1]
        assert exact["IWAE", 2] > 0 > exact["CUBO, n = 2", None]
