"""Benchmark of step times per estimator."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_lvm.benchmarks import steps
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.harness import Result


@pytest.mark.slow
def test_steps_smoke_run_times_every_handwritten_estimator(
    smoke: Callable[[str], tuple[Result, Path]],
) -> None:
    result, _ = smoke("steps")
    assert {"VIMCO", "REBAR", "NeuralBaseline"} <= {row["estimator"] for row in result["rows"]}
    for row in result["rows"]:
        assert row["not captured"] == ""
        assert min(row["captured, ms"], row["captured / by hand"], row["eager / by hand"]) > 0


def test_handwritten_and_our_step_change_parameters() -> None:
    """The timed steps train."""
    with local_parameters():
        for step, parameters in (
            steps.handwritten_step("belief_net", "VIMCO", 5, 2, 0),
            steps.our_step("belief_net", "VIMCO", 5, 2, 0, "captured"),
        ):
            for _ in range(6):
                before = [p.detach().clone() for p in parameters]
                step()
                assert all((a != b).any() for a, b in zip(before, parameters, strict=True))


def test_steps_rejects_unknown_program_and_level() -> None:
    with pytest.raises(
        ValueError, match=r"levels: 'fast' is unknown. Available: eager, captured, compiled"
    ):
        steps.run(levels="fast")
    with pytest.raises(ValueError, match=r"program: 'gmm' is unknown. Available: belief_net"):
        steps.run(program="gmm")
