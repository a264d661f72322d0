"""Figures of conditional models: completions, predictions, intervals."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Delta

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import ConditionalVAE, RandomEffects
from ppl_lvm.report.figures.conditional import (
    completed_pictures,
    filled_in,
    intervals,
    posterior,
    predicted_against_observed,
    predictions,
    reliability,
)
from ppl_lvm.report.run_view import RunView
from small_programs import Mean

DRAW = np.random.default_rng(0)


def tiles(figure: Any, rows: int, columns: int, size: int) -> Any:
    """Square pictures of a mosaic (rows, columns, size, size), read back."""
    image = np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)
    at = [(size + 1) * n for n in range(max(rows, columns))]
    return np.array([[image[t : t + size, l : l + size] for l in at[:columns]] for t in at[:rows]])


def test_completed_pictures_keep_the_observed_part() -> None:
    x, draws = DRAW.uniform(size=(3, 16)), DRAW.uniform(size=(2, 3, 8))
    figure = completed_pictures(x, draws, draws.mean(0), (4, 4))
    shown = tiles(figure, 5, 3, 4)  # data, observed, two samples, mean
    assert np.allclose(shown[:, :, :2], x[:, :8].reshape(3, 2, 4))  # the upper half of each
    assert np.allclose(shown[0, :, 2:], x[:, 8:].reshape(3, 2, 4))
    assert np.ptp(shown[1, :, 2:]) == 0
    assert np.allclose(shown[2:4, :, 2:], draws.reshape(2, 3, 2, 4))
    assert np.allclose(shown[4, :, 2:], draws.mean(0).reshape(3, 2, 4))


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.86, 0.94), (0.2, 0.1, 0.4)])
def test_prediction_intervals_have_their_coverage(scale: float, low: float, high: float) -> None:
    y = DRAW.normal(size=(800, 2))
    figure = predicted_against_observed(y, scale * DRAW.normal(size=(400, 800, 2)))
    text = figure.axes[0].texts[0].get_text()
    share = float(text.split(" contain ")[1].split("%")[0]) / 100
    assert low < share < high


def test_reliability_plots_frequency_against_probability() -> None:
    p = np.repeat([0.05, 0.55, 0.95], 1000)
    y = DRAW.uniform(size=3000) < p
    probability, share = reliability(y, p).axes[0].containers[0].lines[0].get_data()
    assert np.allclose(probability, [0.05, 0.55, 0.95])
    assert np.allclose(share, [y[:1000].mean(), y[1000:2000].mean(), y[2000:].mean()])


def test_predictions_do_not_depend_on_observed_y() -> None:
    """y is independent of x, so predictions must not correlate with it."""
    torch.manual_seed(0)
    x, y = torch.randn(100, 1), torch.randn(100, 2)
    model = ConditionalVAE(2, hidden=(8,), likelihood="gaussian")
    run = fit(model, None, (x, y), num_steps=200)
    figure = predictions(RunView(run, load_data((x, y)), (x, y)))
    assert figure is not None
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert abs(np.corrcoef(points.T)[0, 1]) < 0.3
    back = run.decode(run.encode((x, y))["z"], (x, y))["y"]  # codes inferred from y
    assert np.corrcoef(back.flatten(), y.flatten())[0, 1] > 0.5


def test_categories_are_completed_as_levels() -> None:
    data = load_data("digits").subset(torch.arange(30))
    model = ConditionalVAE(2, 32, hidden=(4,), likelihood="categorical", categories=17)
    run = fit(model, None, data, num_steps=2)
    figure = filled_in(RunView(run, data, data.tensors))
    assert figure is not None
    shown = tiles(figure, 7, 8, 8)
    assert np.array_equal(shown[0].reshape(8, 64), data.tensors[0][:8].numpy())
    assert 2 < shown[-1, :, 4:].mean() < 14  # levels of ink, not probabilities


@pytest.mark.slow
def test_school_means_shrink_and_intervals_are_quantiles() -> None:
    data = load_data("eight_schools")
    run = fit(RandomEffects(), None, data, num_steps=300)
    view = RunView(run, data, data.tensors)
    figure = predictions(view)
    assert figure is not None
    means = np.asarray(figure.axes[0].containers[0].lines[0].get_ydata())
    y = data.tensors[0][:, 0].numpy()
    assert means.std() < y.std() / 2  # shrunken
    assert posterior(view) is not None
    drawn = {"a": DRAW.normal(size=(100, 2)), "b": DRAW.normal(size=100)}
    bars = intervals(drawn, ["c"]).axes
    assert [t.get_text() for t in bars[0].get_yticklabels()] == ["a[0]", "a[1]"]
    ends = np.array([path.vertices[:, 0] for path in bars[0].collections[0].get_paths()])
    assert np.allclose(ends, np.quantile(drawn["a"], [0.05, 0.95], 0).T)
    assert "c" in bars[1].get_xlabel()


def test_posterior_figure_accepts_point_estimates() -> None:
    """The samples of a point estimate are the parameter itself, with a gradient."""
    run = fit(Mean(), point, torch.ones(10), num_steps=2)
    assert posterior(RunView(run, load_data(torch.ones(10)), (torch.ones(10),))) is not None


def point(x: torch.Tensor) -> None:
    pyro.sample("m", Delta(pyro.param("center", torch.tensor(0.3))))
