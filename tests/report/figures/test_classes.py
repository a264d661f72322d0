"""Figures of classes: counts, hidden labels, class means."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import label_free
from ppl_lvm.models import SemiSupervisedVAE
from ppl_lvm.report.figures.arrays import latent_plane
from ppl_lvm.report.figures.classes import against_labels, confusion, of_each, table
from ppl_lvm.report.run_view import RunView

DRAW = np.random.default_rng(0)


def counts(figure: Any, shape: tuple[int, int]) -> Any:
    table = np.zeros(shape, int)
    for text in figure.axes[0].texts:
        k, l = text.get_position()
        table[int(l), int(k)] = int(text.get_text())
    return table


def test_confusion_matches_scikit_learn() -> None:
    inferred, labels = DRAW.integers(0, 4, (2, 300))
    figure = confusion(inferred, labels, 4, same=True)
    expected = confusion_matrix(labels, inferred, labels=range(4))
    assert (counts(figure, (4, 4)) == expected).all()
    assert f"{(inferred == labels).mean():.1%} of 300" in figure.get_suptitle()
    grouped = confusion(inferred, labels % 2, 4, ["even", "odd"])
    assert (
        counts(grouped, (2, 4)) == confusion_matrix(labels % 2, inferred, labels=range(4))[:2]
    ).all()
    assert [t.get_text() for t in grouped.axes[0].get_yticklabels()] == ["even", "odd"]


@functools.cache
def semi_supervised_view() -> RunView:
    """Four clouds with a quarter of the labels, of which a tenth are wrong."""
    data = load_data("blobs(n=200, components=4, dimensions=3, noise=0.5)")
    x, truth = data.tensors[0], data.labels
    assert truth is not None
    labels = torch.where(torch.arange(200) % 40 == 0, (truth + 1) % 4, truth)
    some = torch.where(torch.arange(200) % 4 == 0, labels, -1)
    run = fit(
        SemiSupervisedVAE(4, 2, hidden=(16,), likelihood="gaussian-shared"),
        label_free,
        (x, some),
        num_steps=150,
    )
    data = load_data((x, some))
    return RunView(run, data, data.tensors)


@pytest.mark.slow
@pytest.mark.xdist_group("semi-supervised view")  # one worker trains it once
def test_confusion_hides_labels_from_the_model() -> None:
    """With a visible label, a mislabeled row follows its label; with a hidden one it does not."""
    view = semi_supervised_view()
    figure = against_labels(view)
    assert figure is not None
    table = counts(figure, (4, 4))
    assert table.sum() == 50
    assert np.trace(table) == 45  # five labels are wrong
    visible = view.codes["c"].argmax(-1).numpy()
    known = view.batch[1].numpy() >= 0
    assert np.trace(confusion_matrix(view.batch[1].numpy()[known], visible[known])) > 45


@pytest.mark.slow
@pytest.mark.xdist_group("semi-supervised view")
def test_class_means_match_the_rows_of_the_class() -> None:
    view = semi_supervised_view()
    figure = of_each(view)
    assert figure is not None
    shown = figure.axes[0].images[0].get_array()
    x, classes = view.batch[0].numpy(), view.codes["c"].argmax(-1).numpy()
    means = np.stack([x[classes == k].mean(0) for k in range(4)])
    expected = (means - x.mean(0)) / x.std(0)
    assert np.abs(np.asarray(shown) - expected).max() < 0.5
    assert np.abs(np.asarray(shown)[::-1] - expected).max() > 1  # the order matters


def test_table_is_standardized_by_the_data() -> None:
    x = DRAW.normal(size=(500, 3)) * [1, 10, 0] + 5
    figure = table(x[:2], x, ["a", "b"], "t", ["u", "v", "w"])
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert np.allclose(shown[:, :2], ((x[:2] - x.mean(0)) / np.maximum(x.std(0), 1e-9))[:, :2])
    assert np.allclose(shown[:, 2], 0)


def test_latent_plane_draws_unlabeled_rows_in_gray() -> None:
    codes, labels = DRAW.normal(size=(60, 2)), np.arange(60) % 3 - 1
    figure = latent_plane(codes, labels)
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["no label", "0", "1"]
    points = figure.axes[0].collections
    assert np.array_equal(np.asarray(points[0].get_offsets()), codes[labels == -1])
