"""Classifier two-sample tests by fixed classifiers."""

from typing import Any

import numpy as np
import pytest
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian

from ppl_lvm.diagnostics.two_sample import classify, two_sample


def _case(factor: float) -> Any:
    model = LinearGaussian()
    return two_sample(model, ExactGuide(model), factor * model.simulate(200, seed=3))


CASES = {"two_sample": DiagnosticCases(good=[lambda: _case(1.0)], faulty=[lambda: _case(2.0)])}


@pytest.mark.slow
def test_two_sample_has_at_most_one_false_positive_in_twenty(linear: Any, exact_guide: Any) -> None:
    alarms = 0
    for seed in range(60):
        x = linear.simulate(100, seed=seed)
        (row,) = two_sample(linear, exact_guide(linear), x, seed=seed).findings()
        alarms += row.verdict != "good"
    assert alarms <= 3


def test_classifiers_detect_a_correlation_that_no_marginal_shows() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2))
    y = generator.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 300)
    result = classify(x, y, generator)
    assert result.p_value < 0.01
    assert max(result.accuracy.values()) > 0.6
    same = classify(x, generator.normal(size=(300, 2)), generator)
    assert same.p_value > 0.02
