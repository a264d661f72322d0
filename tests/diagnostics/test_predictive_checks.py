"""Predictive checks on data of the model and others."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian, mean_guide, mean_model
from pyro import poutine
from torch import Tensor

from ppl_lvm.diagnostics import predictive_checks
from ppl_lvm.diagnostics.predictive_checks import predictive_check, standard_quantities
from ppl_lvm.diagnostics.two_sample import two_sample
from ppl_lvm.models.hmm import HiddenMarkovModel


def _posterior_check(factor: float) -> Any:
    model = LinearGaussian()
    return predictive_check(model, ExactGuide(model), factor * model.simulate(200, seed=3))


def _prior_check(shift: float) -> Any:
    x = torch.from_numpy(np.random.default_rng(4).normal(0.3, 1, 50)).float()
    return predictive_check(mean_model, mean_guide(), shift + x, prior=True)


CASES = {
    "predictive": DiagnosticCases(
        good=[lambda: _posterior_check(1.0)], faulty=[lambda: _posterior_check(2.0)]
    ),
    "prior": DiagnosticCases(good=[lambda: _prior_check(0.0)], faulty=[lambda: _prior_check(50.0)]),
}


def heavy_tailed(linear: Any, rows: int) -> Tensor:
    """Data with Student's t noise of the model's variance."""
    x = linear.simulate(rows)
    noise = torch.distributions.StudentT(2.2).sample(x.shape) * 1.2
    return x + noise.clamp(-40, 40)


def test_predictive_checks_are_good_on_data_of_the_model(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(300)
    result = predictive_check(linear, exact_guide(linear), x)
    assert {f.verdict for f in result.findings()} == {"good"}
    assert set(result.replicated) >= {"x: mean", "x: largest", "x: largest eigenvalue"}
    assert two_sample(linear, exact_guide(linear), x).findings()[0].verdict == "good"


def test_predictive_checks_detect_misspecified_noise(linear: Any, exact_guide: Any) -> None:
    x = heavy_tailed(linear, 300)
    result = predictive_check(linear, exact_guide(linear), x)
    assert [f.verdict for f in result.findings()] == ["bad", "bad"]
    assert two_sample(linear, exact_guide(linear), x).findings()[0].verdict == "bad"


def test_custom_quantity_is_part_of_the_check(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(100)
    x[:, 0] = x[:, 0].sort().values  # rows are no longer exchangeable
    result = predictive_check(
        linear,
        exact_guide(linear),
        x,
        quantities={"first half's mean": lambda d: d[:, :50, 0].mean(1)},
    )
    assert result.p_values["x: first half's mean"] > 0.99
    assert "first half's mean" in result.findings()[0].why


@pytest.mark.slow
def test_predictive_checks_have_at_most_one_false_positive_in_twenty(
    linear: Any, exact_guide: Any
) -> None:
    alarms = np.zeros(2)
    for seed in range(40):
        x = linear.simulate(100, seed=seed)
        check = predictive_check(linear, exact_guide(linear), x, seed=seed, num_replicates=499)
        alarms += [f.verdict != "good" for f in check.findings()]
    assert (alarms <= 2).all()


def _chain() -> HiddenMarkovModel:
    """Sequences with one column of small and one of large variance."""
    model = HiddenMarkovModel(2, 2)
    model.transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    model.means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    model.scale = torch.tensor([[1.0, 9.0], [0.5, 9.0]])
    return model


def _incomplete_sequences(rows: int) -> Tensor:
    """Draws of `_chain` with 90% of the second column missing; every fifth ends early."""
    torch.manual_seed(rows)
    free = poutine.uncondition(_chain())
    x: Tensor = poutine.trace(free).get_trace(torch.zeros(rows, 5, 2)).nodes["x"]["value"]
    x[..., 1][torch.rand(x.shape[:2]) < 0.9] = torch.nan
    x[::5, 3:] = torch.nan
    return x


def _no_latents(x: Tensor) -> None:
    pass


def test_replicates_have_the_missing_values_of_the_data(monkeypatch: Any) -> None:
    model, x = _chain(), _incomplete_sequences(150)
    result = predictive_check(model, _no_latents, x)
    assert {f.verdict for f in result.findings()} == {"good"}
    assert two_sample(model, _no_latents, x).findings()[0].verdict == "good"
    flat = x.flatten(1).numpy()
    assert (np.isnan(result.pit["x"]) == np.isnan(flat)).all()
    monkeypatch.setattr(predictive_checks, "mask_missing", lambda x_rep, x: x_rep)  # the wrong twin
    assert "bad" in {f.verdict for f in predictive_check(model, _no_latents, x).findings()}


def test_predictive_check_detects_faults_in_incomplete_sequences() -> None:
    model, x = _chain(), _incomplete_sequences(150)
    x[..., 0] += torch.where(x[..., 0] > 0, 0.7, 0.0)
    assert "bad" in {f.verdict for f in predictive_check(model, _no_latents, x).findings()}
    assert two_sample(model, _no_latents, x).findings()[0].verdict != "good"


def test_standard_quantities_of_incomplete_data_equal_numpys() -> None:
    x = _incomplete_sequences(60).flatten(1)
    quantities = standard_quantities(x.shape[1])
    values = {name: T(x[None])[0].numpy() for name, T in quantities.items()}
    data = x.double().numpy()
    centered = data - np.nanmean(data, 0)
    pairs = np.zeros((10, 10))
    for i, j in np.ndindex(10, 10):
        product = centered[:, i] * centered[:, j]
        pairs[i, j] = 0.0 if np.isnan(product).all() else np.nanmean(product)
    expected = {
        "mean": np.nanmean(data, 0),
        "sd": np.nanstd(data, 0, ddof=1),
        "sd of row means": np.nanmean(data, 1).std(ddof=1),
        "smallest": np.nanmin(data, 0),
        "largest": np.nanmax(data, 0),
        "largest eigenvalue": np.linalg.eigvalsh(pairs)[-1],
    }
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_lag_1_autocorrelation_equals_numpys_correlation() -> None:
    x = _incomplete_sequences(60)
    quantities = standard_quantities(10, 5)
    data = x.double().numpy()
    for power, name in ((1, "lag-1 autocorrelation"), (2, "lag-1 autocorrelation of squares")):
        d = (data - np.nanmean(data, (0, 1))) ** power
        correlations = []
        for p in range(2):
            now, later = d[:, :-1, p].ravel(), d[:, 1:, p].ravel()
            observed = ~np.isnan(now + later)
            correlations.append(np.corrcoef(now[observed], later[observed])[0, 1])
        value = float(quantities[name](x.flatten(1)[None])[0])
        assert value == pytest.approx(np.mean(correlations), abs=1e-5)
    one = torch.full((1, 3, 10), torch.nan)
    one[..., 0] = torch.randn(1, 3)  # no two consecutive steps
    assert quantities["lag-1 autocorrelation"](one).item() == 0.0


@pytest.mark.slow
def test_autocorrelation_detects_a_chain_without_memory() -> None:
    """Both chains have equal marginals; only the data's states persist."""
    persistent, memoryless = HiddenMarkovModel(2, 1), HiddenMarkovModel(2, 1)
    for model, stay in ((persistent, 0.95), (memoryless, 0.5)):
        model.means = torch.zeros(2, 1)
        model.scale = torch.tensor([[1.0], [3.0]])
        model.transition = torch.tensor([[stay, 1 - stay], [1 - stay, stay]])
    free: Any = poutine.uncondition(persistent)
    x = poutine.trace(free).get_trace(torch.zeros(60, 30)).nodes["x"]["value"].squeeze(-1)
    x[::3, 20:] = torch.nan
    assert predictive_check(persistent, _no_latents, x).findings()[0].verdict == "good"
    pyro.clear_param_store()  # or the second model reuses the first one's parameters
    result = predictive_check(memoryless, _no_latents, x)
    assert result.findings()[0].verdict == "bad"
    assert result.p_values["x: lag-1 autocorrelation of squares"] == 0.0


def test_quantity_that_returns_nan_on_missing_values_is_named() -> None:
    model, x = _chain(), _incomplete_sequences(40)
    with pytest.raises(ValueError, match=r"'its mean' gives NaN.*torch\.nanmean"):
        predictive_check(model, _no_latents, x, quantities={"its mean": lambda d: d.mean((1, 2))})


def test_one_row_is_checked_by_the_quantities_that_it_has() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", pyro.distributions.Normal(0.0, 1.0), obs=x)

    check = predictive_check(model, lambda x: None, torch.ones(1), num_replicates=99)
    assert set(check.observed) == {"x: mean", "x: smallest", "x: largest"}  # skewness is constant


def test_quantities_do_not_depend_on_the_units_of_a_column(linear: Any, exact_guide: Any) -> None:
    """A misfit of one column is found beside a column of a thousand times its scale."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            scale = torch.tensor([1.0, 1000.0])
            pyro.sample("x", pyro.distributions.Normal(0.0, scale).to_event(1), obs=x)

    x = torch.randn(200, 2) * torch.tensor([1.4, 1000.0])
    check = predictive_check(model, lambda x: None, x, columns=["length", "mass"])
    assert check.findings()[0].verdict == "bad"
    assert check.label("x: sd") == "x: sd of length"
    assert "of length" in check.findings()[0].why
    good = predictive_check(model, lambda x: None, x / torch.tensor([1.4, 1.0]))
    assert good.findings()[0].verdict == "good"
    assert good.label("x: sd").startswith("x: sd of column ")


def test_constant_quantities_are_left_out_and_a_wrong_constant_is_not() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", pyro.distributions.Bernoulli(torch.full((3,), 0.5)).to_event(1), obs=x)

    x = (torch.rand(100, 3) < 0.5).float()
    assert not {"x: smallest", "x: largest"} & set(
        predictive_check(model, lambda x: None, x).observed
    )
    assert "x: largest" in predictive_check(model, lambda x: None, torch.zeros(100, 3)).observed


def test_value_of_the_row_is_the_one_that_is_graded(linear: Any, exact_guide: Any) -> None:
    check = predictive_check(linear, exact_guide(linear), linear.simulate(50, seed=0))
    row = check.findings()[0]
    assert row.value == min(check.corrected.values())
    assert (row.verdict == "good") == (row.value >= 0.005)
