"""Figures of classes: samples of each, and confusion with labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.posterior import predict
from ppl_lvm.report.figures import arrays
from ppl_lvm.report.figures.style import (
    TEXT,
    WIDTH,
    column_name,
    describe,
    picture_grid,
    title_above,
)
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

SAMPLES_PER_CLASS = 8
MAX_CLASSES = 20


@run_figure(
    "mixture",
    caption="Inspect components that cover only a few points, and those that cover two clouds.",
    alt_text="The data colored by component, with each component's ellipses.",
)
def mixture(view: RunView) -> Figure | None:
    """Data and components, if the class is the only latent."""
    name, x = view.rows, view.batch[0]
    if name is None or len(view.classes) != 1 or len(view.codes) != 1:
        return None
    components = _components(view, name, x[:1])
    if components is None:
        return None
    complete = x.isfinite().all(1).cpu().numpy()  # rows with missing values cannot be drawn
    components["responsibilities"] = components["responsibilities"][complete]
    return arrays.mixture(view.x[complete], names=view.data.columns, **components)


@run_figure(
    "classes",
    caption="Classes should look distinct; two similar ones suggest a split cluster.",
    alt_text="Samples of the model for each class.",
)
def of_each(view: RunView) -> Figure | None:
    """Samples of each class, if the model has one class and continuous codes."""
    name = view.rows
    if name is None or len(view.classes) != 1 or not view.continuous:
        return None
    site, probabilities = next(iter(view.classes.items()))
    K = probabilities.shape[-1]
    if K > MAX_CLASSES:
        return None
    with preserve_rng():
        torch.manual_seed(0)
        states = torch.arange(K, device=probabilities.device).repeat_interleave(SAMPLES_PER_CLASS)
        rows = view.repeated(len(states))
        samples = view.numbers(predict.decode(view.pair, {site: states}, *rows)[name])
    share = probabilities.mean(0).cpu().numpy()
    names = [f"{k}: {share[k]:.0%}" for k in range(K)]
    title = "Samples of each class, and its share of the rows"
    if view.image_shape is not None:
        shown = samples.reshape(len(samples), *view.image_shape)
        return picture_grid(title, shown, K, SAMPLES_PER_CLASS, names)
    return table(
        samples.reshape(K, SAMPLES_PER_CLASS, -1).mean(1), view.x, names, title, view.data.columns
    )


@run_figure(
    "confusion",
    caption="The model errs where a label spreads over classes, or a class has many labels.",
    alt_text="Number of rows of each label in each inferred class.",
)
def against_labels(view: RunView) -> Figure | None:
    """Inferred class against label, if both exist.

    Labels in the model's arguments are hidden first (-1: no label).
    """
    if len(view.classes) != 1:
        return None
    ((site, probabilities),) = view.classes.items()
    index, labels, K = view.label_tensor, view.data.labels, probabilities.shape[-1]
    if index is not None:
        argument = view.batch[index]
        hidden = [torch.full_like(t, -1) if t is argument else t for t in view.batch]
        known, labels = argument >= 0, argument.long()
        probabilities = predict.encode(view.pair, *hidden)[site]
    elif labels is not None and not labels.is_floating_point():
        labels = labels[: len(probabilities)]
        known = torch.ones(len(labels), dtype=torch.bool)
    if labels is None or not known.any() or max(K, int(labels.max()) + 1) > MAX_CLASSES:
        return None
    names = view.data.label_names if index is None else None
    inferred = probabilities.argmax(-1)[known].cpu().numpy()
    return confusion(inferred, labels[known].cpu().numpy(), K, names, same=index is not None)


def confusion(
    inferred: ArrayLike,
    labels: ArrayLike,
    classes: int,
    names: Sequence[str] | None = None,
    *,
    same: bool = False,
) -> Figure:
    """Number of rows of each label in each class.

    Args:
        inferred: classes 0, …, K - 1 (N,).
        labels: codes 0, 1, … (N,).
        classes: K.
        names: names of the labels.
        same: True if class k is label k, so that the diagonal is correct.
    """
    inferred, labels = np.asarray(inferred, np.int64), np.asarray(labels, np.int64)
    K, L = classes, classes if same else int(labels.max()) + 1
    counts = np.zeros((L, K), np.int64)
    np.add.at(counts, (labels, inferred), 1)
    if same:
        title = (
            f"Inferred class (labels hidden): {(inferred == labels).mean():.1%} of {len(labels)}"
        )
        title += " labeled rows are correct (diagonal)"
    else:
        title = "Inferred class against a label hidden from the model: number of rows"
    figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * L), layout="constrained")
    title_above(figure, title)
    axes = figure.subplots()
    axes.imshow(np.sqrt(counts), cmap="Blues", aspect="auto")
    dark = counts.max() / 2
    for l, k in np.argwhere(counts > 0):
        color = "white" if counts[l, k] > dark else "black"
        axes.text(k, l, str(counts[l, k]), ha="center", va="center", fontsize=TEXT - 2, color=color)
    axes.set_xticks(range(K), [str(k) for k in range(K)], fontsize=TEXT - 1)
    axes.set_yticks(range(L), names or [str(l) for l in range(L)], fontsize=TEXT - 1)
    axes.set_xlabel("inferred class")
    axes.set_ylabel("label")
    purity = counts.max(0).sum() / max(counts.sum(), 1)
    return describe(
        figure, f"{purity:.1%} of {counts.sum()} rows have the most frequent label of their class."
    )


def table(
    means: ArrayLike,
    x: ArrayLike,
    classes: Sequence[str],
    title: str,
    columns: Sequence[str] | None = None,
) -> Figure:
    """Mean of every column for each class, standardized by the data.

    Args:
        means: (K, P).
        x: data (N, P).
        classes, columns: names.
        title: title of the figure.
    """
    means, x = np.asarray(means, np.float64), np.asarray(x, np.float64)
    spread = np.nanstd(x, 0)
    shown = (means - np.nanmean(x, 0)) / np.where(spread > 0, spread, 1.0)
    figure = Figure(figsize=(WIDTH, 1.6 + 0.3 * len(means)), layout="constrained")
    title_above(figure, title)
    axes = figure.subplots()
    limit = max(1.0, float(np.abs(shown).max()))
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(means)), classes, fontsize=TEXT - 1)
    if columns is not None and len(columns) <= 15:
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=TEXT - 2)
    else:
        axes.set_xlabel("column")
    bar = figure.colorbar(image, ax=axes, fraction=0.05)
    bar.set_label("mean, sd of the data", fontsize=TEXT - 2)
    k, p = np.unravel_index(np.abs(shown).argmax(), shown.shape)
    return describe(
        figure,
        f"The farthest mean is {shown[k, p]:+.1f} sd, {column_name(int(p), columns)} of "
        f"{classes[k]}.",
    )


def _components(view: RunView, observed: str, row: Tensor) -> dict[str, Any] | None:
    """Responsibilities, means, covariances and weights of a mixture, None for other models."""
    site, responsibilities = next(iter(view.classes.items()))
    count = responsibilities.shape[-1]
    means, covariances = [], []
    for component in predict.components(view.pair, site, count, row):
        fn = component[observed]
        if fn.event_shape != row.shape[1:] or not torch.is_floating_point(fn.mean):
            return None
        means.append(fn.mean[0])
        matrix = hasattr(fn, "covariance_matrix")
        covariances.append(fn.covariance_matrix[0] if matrix else torch.diag(fn.variance[0]))
    return {
        "responsibilities": responsibilities.cpu().numpy(),
        "means": torch.stack(means).cpu().numpy(),
        "covariances": torch.stack(covariances).cpu().numpy(),
        "weights": responsibilities.mean(0).cpu().numpy(),
    }
