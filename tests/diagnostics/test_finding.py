"""Findings and thresholds."""

import math

import pytest

from ppl_lvm.diagnostics.finding import Finding, Threshold, format_with_error


def test_value_is_printed_with_as_many_digits_as_its_error_allows() -> None:
    assert format_with_error(1.23456, 0.0123) == "1.235 ± 0.012"
    assert format_with_error(None, None) == "–"
    assert Finding(question="q", name="n", value=1.23456, error=0.0123).formatted == "1.235 ± 0.012"


def test_values_that_are_not_finite_become_none_in_json() -> None:
    row = Finding(question="q", name="n", value=-math.inf, error=math.nan).to_dict()
    assert row["value"] is None
    assert row["error"] is None


@pytest.mark.parametrize(
    ("value", "small", "large"),
    [(0.05, "good", "bad"), (0.1, "good", "bad"), (0.5, "warning", "warning"),
     (1.0, "warning", "good"), (2.0, "bad", "good"), (math.nan, "unknown", "unknown")],
)  # fmt: skip
def test_threshold_grades_in_both_directions(value: float, small: str, large: str) -> None:
    assert Threshold(good=0.1, bad=1.0).grade(value) == small
    assert Threshold(good=1.0, bad=0.2, larger_is_better=True).grade(value) == large


def test_threshold_words_its_limits_and_drops_the_remedy_of_a_good_row() -> None:
    threshold = Threshold(good=0.1, bad=1.0)
    assert str(threshold) == "good ≤ 0.1, bad > 1"
    assert str(Threshold(good=0.005, bad=0.001, larger_is_better=True)) == (
        "good ≥ 0.005, bad < 0.001"
    )
    good = threshold.finding("q", "n", 0.05, why="w", remedy="r")
    bad = threshold.finding("q", "n", 0.05, graded=3.0, why="w", remedy="r")
    assert (good.verdict, good.remedy) == ("good", "")
    assert (bad.verdict, bad.remedy, bad.value) == ("bad", "r", 0.05)
    assert threshold.finding("q", "n", 3.0, verdict="unknown", why="w", remedy="").threshold
