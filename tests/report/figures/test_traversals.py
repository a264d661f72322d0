"""Figures of traversals and worst-explained rows, read back."""

from typing import Any

import numpy as np
import pytest
import torch

from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import PPCA, BayesianGaussianMixture
from ppl_lvm.report.figures.style import gap, mosaic
from ppl_lvm.report.figures.traversals import traversals, worst_explained
from ppl_lvm.report.run_figures import RUN_FIGURES, figures, worst_rows

DRAW = np.random.default_rng(0)


def shown(figure: Any) -> Any:
    return np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)


def test_traversals_of_pictures_have_one_latent_per_row() -> None:
    decoded, values = DRAW.uniform(size=(3, 5, 6)), DRAW.normal(size=(3, 5))
    figure = traversals(decoded, values, ["a", "b", "c"], image_shape=(2, 3))
    expected = mosaic(decoded.reshape(15, 2, 3), 3, 5)
    assert np.array_equal(shown(figure), expected, equal_nan=True)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert gap(decoded.reshape(15, 2, 3)) == 1


def test_traversals_of_a_table_draw_the_columns_that_move_most() -> None:
    decoded = np.zeros((2, 5, 9))
    decoded[:, :, 4] = 3 * np.arange(5)
    decoded[0, :, 7] = np.arange(5)
    names = [f"c{p}" for p in range(9)]
    figure = traversals(decoded, DRAW.normal(size=(2, 5)), ["a", "b"], names=names)
    assert len(figure.axes) == 2
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert list(lines)[:2] == ["c4", "c7"]
    assert np.ptp(np.asarray(lines["c4"])) == pytest.approx(1.0)


def test_worst_explained_rows_come_first() -> None:
    x, back = DRAW.uniform(size=(2, 30, 6))
    log_p = DRAW.normal(size=30)
    order = np.argsort(log_p)[:4]
    figure = worst_explained(x, back, log_p, image_shape=(2, 3), count=4)
    pairs = np.concatenate([x[order], back[order]]).reshape(8, 2, 3)
    assert np.array_equal(shown(figure), mosaic(pairs, 2, 4), equal_nan=True)
    table = worst_explained(x, back, log_p, count=4)
    miss = (x - back)[order] / (x - back).std(0)
    assert np.allclose(shown(table), miss)
    labels = [t.get_text() for t in table.axes[0].get_yticklabels()]
    assert labels == [f"row {n}" for n in order]


def test_run_with_codes_has_traversals_and_worst_rows() -> None:
    run = fit(PPCA, None, "wine", num_steps=3)
    data, _ = run.data()
    drawn = figures(run, data)
    assert "traversals" in drawn
    assert set(drawn) <= set(RUN_FIGURES)
    batch = tuple(t[:50] for t in run.batch(data))
    log_p = -torch.arange(50.0)
    figure = worst_rows(run, data, batch, log_p)
    assert figure is not None
    assert figure.axes[0].get_yticklabels()[0].get_text() == "row 49"
    assert worst_rows(run, data, batch, log_p[:7]) is None


@pytest.mark.slow
def test_density_is_not_drawn_with_global_latents() -> None:
    run = fit(
        BayesianGaussianMixture,
        None,
        "moons",
        settings={"components": 2},
        num_steps=2,
        engine="eager",
    )
    drawn = figures(run, run.data()[0])
    assert "density" not in drawn
    assert "mixture" in drawn
