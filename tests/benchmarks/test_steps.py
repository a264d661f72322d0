"""The step benchmark compares like with like, and refuses what it does not know."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_lvm.benchmarks import steps
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.harness import Result


@pytest.mark.slow
def test_every_hand_written_estimator_is_timed_and_captured(
    smoke: Callable[[str], tuple[Result, Path]],
) -> None:
    result, _ = smoke("steps")
    assert {"VIMCO", "REBAR", "NeuralBaseline"} <= {row["estimator"] for row in result["rows"]}
    for row in result["rows"]:
        assert row["not captured"] == ""
        assert row["captured, ms"] > 0
        assert row["captured / by hand"] < row["eager / by hand"]


def test_a_step_of_each_kind_moves_the_parameters() -> None:
    """What is timed trains: a step that did nothing would be very fast."""
    with local_parameters():
        for step, parameters in (
            steps.handwritten_loss("belief_net", "VIMCO", 5, 2, 0),
            steps.by_us("belief_net", "VIMCO", 5, 2, 0, "captured"),
        ):
            for _ in range(6):
                before = [p.detach().clone() for p in parameters]
                step()
                assert all((a != b).any() for a, b in zip(before, parameters, strict=True))


def test_unknown_words_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="levels: 'fast' is none of eager, captured, compiled"):
        steps.run(levels="fast")
    with pytest.raises(ValueError, match="program: 'gmm' is none of belief_net"):
        steps.run(program="gmm")
