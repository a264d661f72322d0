"""Predictive checks: good on data of the model's own, bad on another likelihood."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.diagnostics.predictive import check, classify, two_sample


def heavy(linear: Any, rows: int) -> Tensor:
    """Data whose noise has the model's variance and another shape."""
    x = linear.simulate(rows)
    noise = torch.distributions.StudentT(2.2).sample(x.shape) * 1.2
    return x + noise.clamp(-40, 40)


def test_data_of_the_model_pass(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(300)
    found = check(linear, exact_guide(linear), x)
    assert {f.verdict for f in found.findings()} == {"good"}
    assert set(found.replicated) >= {"x: mean", "x: largest", "x: largest eigenvalue"}
    assert two_sample(linear, exact_guide(linear), x).findings()[0].verdict == "good"


def test_misspecified_noise_is_found(linear: Any, exact_guide: Any) -> None:
    x = heavy(linear, 300)
    found = check(linear, exact_guide(linear), x)
    assert [f.verdict for f in found.findings()] == ["bad", "bad"]
    assert two_sample(linear, exact_guide(linear), x).findings()[0].verdict == "bad"


def test_users_own_quantity_is_asked(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(100)
    x[:, 0] = x[:, 0].sort().values  # rows are no longer exchangeable
    found = check(
        linear,
        exact_guide(linear),
        x,
        own={"first half's mean": lambda d: d[:, :50, 0].mean(1)},
    )
    assert found.p_values["x: first half's mean"] > 0.99
    assert "first half's mean" in found.findings()[0].why


def test_alarms_are_at_most_one_in_twenty(linear: Any, exact_guide: Any) -> None:
    alarms = np.zeros(3)
    for seed in range(60):
        x = linear.simulate(100, seed=seed)
        rows = check(linear, exact_guide(linear), x, seed=seed, num_replicates=499).findings()
        rows += two_sample(linear, exact_guide(linear), x, seed=seed).findings()
        alarms += [f.verdict != "good" for f in rows]
    assert (alarms <= 3).all()


def test_classifiers_see_a_rotation_that_no_marginal_shows() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2))
    y = generator.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 300)
    found = classify(x, y, generator)
    assert found.p_value < 0.01
    assert max(found.accuracy.values()) > 0.6
    same = classify(x, generator.normal(size=(300, 2)), generator)
    assert same.p_value > 0.02
