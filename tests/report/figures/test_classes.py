"""Pictures of classes hold the counts, and hide the labels that the model is called with."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import label_free
from ppl_lvm.models import SemiSupervisedVAE
from ppl_lvm.report.figures.classes import against_labels, confusion, of_each, table
from ppl_lvm.report.figures.fit import latent_plane
from ppl_lvm.report.run_view import RunView

DRAW = np.random.default_rng(0)


def counts(figure: Any, shape: tuple[int, int]) -> Any:
    found = np.zeros(shape, int)
    for text in figure.axes[0].texts:
        k, l = text.get_position()
        found[int(l), int(k)] = int(text.get_text())
    return found


def test_confusion_counts_as_scikit_learn_does() -> None:
    inferred, labels = DRAW.integers(0, 4, (2, 300))
    figure = confusion(inferred, labels, 4, same=True)
    wanted = confusion_matrix(labels, inferred, labels=range(4))
    assert (counts(figure, (4, 4)) == wanted).all()
    assert f"{(inferred == labels).mean():.1%} of 300" in figure.get_suptitle()
    apart = confusion(inferred, labels % 2, 4, ["even", "odd"])
    assert (
        counts(apart, (2, 4)) == confusion_matrix(labels % 2, inferred, labels=range(4))[:2]
    ).all()
    assert [t.get_text() for t in apart.axes[0].get_yticklabels()] == ["even", "odd"]


def taught() -> RunView:
    """Four clouds; a quarter of the labels, and a tenth of these wrong."""
    data = load_data("blobs(n=200, components=4, dimensions=3, noise=0.5)")
    x, truth = data.tensors[0], data.labels
    assert truth is not None
    said = torch.where(torch.arange(200) % 40 == 0, (truth + 1) % 4, truth)
    some = torch.where(torch.arange(200) % 4 == 0, said, -1)
    run = fit(
        SemiSupervisedVAE(4, 2, hidden=(16,), likelihood="gaussian-shared"),
        label_free,
        (x, some),
        num_steps=150,
        progress=False,
    )
    whole = load_data((x, some))
    return RunView(run, whole, whole.tensors)


def test_labels_are_hidden_from_the_model_that_is_asked() -> None:
    """With its label in sight a mislabelled row is put where its label says; hidden, it is not."""
    subject = taught()
    figure = against_labels(subject)
    assert figure is not None
    found = counts(figure, (4, 4))
    assert found.sum() == 50
    assert np.trace(found) == 45  # five labels are wrong
    seen = subject.codes["c"].argmax(-1).numpy()
    known = subject.batch[1].numpy() >= 0
    assert np.trace(confusion_matrix(subject.batch[1].numpy()[known], seen[known])) > 45


def test_each_class_is_drawn_where_its_rows_lie() -> None:
    subject = taught()
    figure = of_each(subject)
    assert figure is not None
    shown = figure.axes[0].images[0].get_array()
    x, own = subject.batch[0].numpy(), subject.codes["c"].argmax(-1).numpy()
    means = np.stack([x[own == k].mean(0) for k in range(4)])
    wanted = (means - x.mean(0)) / x.std(0)
    assert np.abs(np.asarray(shown) - wanted).max() < 0.5
    assert np.abs(np.asarray(shown)[::-1] - wanted).max() > 1  # not any order


def test_a_table_is_in_units_of_the_data() -> None:
    x = DRAW.normal(size=(500, 3)) * [1, 10, 0] + 5
    figure = table(x[:2], x, ["a", "b"], "t", ["u", "v", "w"])
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert np.allclose(shown[:, :2], ((x[:2] - x.mean(0)) / np.maximum(x.std(0), 1e-9))[:, :2])
    assert np.allclose(shown[:, 2], 0)


def test_rows_without_a_label_are_gray() -> None:
    codes, labels = DRAW.normal(size=(60, 2)), np.arange(60) % 3 - 1
    figure = latent_plane(codes, labels)
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["no label", "0", "1"]
    points = figure.axes[0].collections
    assert np.array_equal(np.asarray(points[0].get_offsets()), codes[labels == -1])
