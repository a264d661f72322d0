"""Predictive checks: good on data of the model's own, bad on another likelihood."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.diagnostics import predictive_checks as predictive
from ppl_lvm.diagnostics.predictive_checks import check, classify, quantities, two_sample
from ppl_lvm.models.hmm import HiddenMarkovModel


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


def _chain() -> HiddenMarkovModel:
    """Sequences of a calm and a wild column."""
    model = HiddenMarkovModel(2, 2)
    model.transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    model.means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    model.scale = torch.tensor([[1.0, 9.0], [0.5, 9.0]])
    return model


def _holed(rows: int) -> Tensor:
    """Draws of it, of whose wild column a tenth is there; some end early."""
    torch.manual_seed(rows)
    free = poutine.uncondition(_chain())
    x: Tensor = poutine.trace(free).get_trace(torch.zeros(rows, 5, 2)).nodes["x"]["value"]
    x[..., 1][torch.rand(x.shape[:2]) < 0.9] = torch.nan
    x[::5, 3:] = torch.nan
    return x


def _nothing(x: Tensor) -> None:
    pass


def test_replicates_miss_what_the_data_miss(monkeypatch: Any) -> None:
    model, x = _chain(), _holed(150)
    found = check(model, _nothing, x)
    assert {f.verdict for f in found.findings()} == {"good"}
    assert two_sample(model, _nothing, x).findings()[0].verdict == "good"
    flat = x.flatten(1).numpy()
    assert (np.isnan(found.pit["x"]) == np.isnan(flat)).all()
    monkeypatch.setattr(predictive, "_masked", lambda x_rep, x: x_rep)  # the wrong twin
    assert "bad" in {f.verdict for f in check(model, _nothing, x).findings()}


def test_a_fault_is_found_where_values_are_there() -> None:
    model, x = _chain(), _holed(150)
    x[..., 0] += torch.where(x[..., 0] > 0, 0.7, 0.0)
    assert "bad" in {f.verdict for f in check(model, _nothing, x).findings()}
    assert two_sample(model, _nothing, x).findings()[0].verdict != "good"


def test_quantities_of_what_is_there_are_numpys() -> None:
    x = _holed(60).flatten(1)
    asked = {name: float(T(x[None])[0]) for name, T in quantities(x.shape[1]).items()}
    held = x.double().numpy()
    centered = held - np.nanmean(held, 0)
    pairs = np.zeros((10, 10))
    for i, j in np.ndindex(10, 10):
        both = centered[:, i] * centered[:, j]
        pairs[i, j] = 0.0 if np.isnan(both).all() else np.nanmean(both)
    expected = {
        "mean": np.nanmean(held),
        "sd": np.nanstd(held, ddof=1),
        "sd of row means": np.nanmean(held, 1).std(ddof=1),
        "smallest": np.nanmin(held),
        "largest": np.nanmax(held),
        "largest eigenvalue": np.linalg.eigvalsh(pairs)[-1],
    }
    assert asked == pytest.approx(expected, rel=1e-4)


def test_steps_are_held_against_the_next_by_numpys_correlation() -> None:
    x = _holed(60)
    asked = quantities(10, 5)
    held = x.double().numpy()
    for power, name in ((1, "correlation of steps"), (2, "correlation of steps' squares")):
        d = (held - np.nanmean(held, (0, 1))) ** power
        each = []
        for p in range(2):
            now, later = d[:, :-1, p].ravel(), d[:, 1:, p].ravel()
            seen = ~np.isnan(now + later)
            each.append(np.corrcoef(now[seen], later[seen])[0, 1])
        found = float(asked[name](x.flatten(1)[None])[0])
        assert found == pytest.approx(np.mean(each), abs=1e-5)
    one = torch.full((1, 3, 10), torch.nan)
    one[..., 0] = torch.randn(1, 3)  # no two steps in a row: nothing to correlate
    assert asked["correlation of steps"](one).item() == 0.0


def test_a_chain_without_memory_is_found_by_its_steps_alone() -> None:
    """Marginals are the same: calm and wild days, which stay a while in the data."""
    stays, forgets = HiddenMarkovModel(2, 1), HiddenMarkovModel(2, 1)
    for model, stay in ((stays, 0.95), (forgets, 0.5)):
        model.means = torch.zeros(2, 1)
        model.scale = torch.tensor([[1.0], [3.0]])
        model.transition = torch.tensor([[stay, 1 - stay], [1 - stay, stay]])
    free: Any = poutine.uncondition(stays)
    x = poutine.trace(free).get_trace(torch.zeros(60, 30)).nodes["x"]["value"].squeeze(-1)
    x[::3, 20:] = torch.nan
    assert check(stays, _nothing, x).findings()[0].verdict == "good"
    pyro.clear_param_store()  # or Pyro gives the second model the first one's parameters
    found = check(forgets, _nothing, x)
    assert found.findings()[0].verdict == "bad"
    assert found.p_values["x: correlation of steps' squares"] == 0.0


def test_a_quantity_that_does_not_expect_gaps_is_named() -> None:
    model, x = _chain(), _holed(40)
    with pytest.raises(ValueError, match=r"'its mean' gives NaN.*torch\.nanmean"):
        check(model, _nothing, x, own={"its mean": lambda d: d.mean((1, 2))})
