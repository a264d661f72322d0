"""Pictures of classes: what each looks like, and how they meet labels that are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.posterior import predict
from ppl_lvm.report.figures import fit as pictures
from ppl_lvm.report.figures.style import TEXT, WIDTH, picture_grid, title_above
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

DRAWN = 8  # of each class
MOST = 20  # classes that a picture bears


@run_figure(
    "mixture",
    caption="Inspect components that cover only a few points, and those that cover two clouds.",
    alt_text="The data colored by component, with each component's ellipses.",
)
def mixture(subject: RunView) -> Figure | None:
    """Data and components, where nothing but the class is latent; None for other models."""
    name, x = subject.rows, subject.batch[0]
    if name is None or len(subject.classes) != 1 or len(subject.codes) != 1:
        return None
    found = _components(subject, name, x[:1])
    if found is None:
        return None
    whole = x.isfinite().all(1).cpu().numpy()  # a row with a hole has no place in the picture
    found["responsibilities"] = found["responsibilities"][whole]
    return pictures.mixture(subject.x[whole], names=subject.data.columns, **found)


@run_figure(
    "classes",
    caption="Classes should look distinct; two similar ones suggest a split cluster.",
    alt_text="Samples of the model for each class.",
)
def of_each(subject: RunView) -> Figure | None:
    """New data of each class, where a class has codes of its own; None for other models."""
    name = subject.rows
    if name is None or len(subject.classes) != 1 or not subject.continuous:
        return None
    site, probabilities = next(iter(subject.classes.items()))
    K = probabilities.shape[-1]
    if K > MOST:
        return None
    with preserve_rng():
        torch.manual_seed(0)
        states = torch.arange(K, device=probabilities.device).repeat_interleave(DRAWN)
        rows = subject.repeated(len(states))
        drawn = subject.numbers(predict.decode(subject.pair, {site: states}, *rows)[name])
    share = probabilities.mean(0).cpu().numpy()
    names = [f"{k}: {share[k]:.0%}" for k in range(K)]
    title = "Each class: new data the model makes of it, and its share of the rows"
    if subject.image_shape is not None:
        shown = drawn.reshape(len(drawn), *subject.image_shape)
        return picture_grid(title, shown, K, DRAWN, names)
    return table(drawn.reshape(K, DRAWN, -1).mean(1), subject.x, names, title, subject.data.columns)


@run_figure(
    "confusion",
    caption="The model errs where a label spreads over classes, or a class has many labels.",
    alt_text="Number of rows of each label in each inferred class.",
)
def against_labels(subject: RunView) -> Figure | None:
    """The inferred class beside the known label; None where either is not to be had.

    Labels that the model is called with are hidden from it first (-1: there is none).
    """
    if len(subject.classes) != 1:
        return None
    ((site, probabilities),) = subject.classes.items()
    at, labels, K = subject.label_tensor, subject.data.labels, probabilities.shape[-1]
    if at is not None:
        given = subject.batch[at]
        hidden = [torch.full_like(t, -1) if t is given else t for t in subject.batch]
        known, labels = given >= 0, given.long()
        probabilities = predict.encode(subject.pair, *hidden)[site]
    elif labels is not None and not labels.is_floating_point():
        labels = labels[: len(probabilities)]
        known = torch.ones(len(labels), dtype=torch.bool)
    if labels is None or not known.any() or max(K, int(labels.max()) + 1) > MOST:
        return None
    names = subject.data.label_names if at is None else None
    inferred = probabilities.argmax(-1)[known].cpu().numpy()
    return confusion(inferred, labels[known].cpu().numpy(), K, names, same=at is not None)


def confusion(
    inferred: ArrayLike,
    labels: ArrayLike,
    classes: int,
    names: Sequence[str] | None = None,
    *,
    same: bool = False,
) -> Figure:
    """How many rows of each label fall into each class.

    Args:
        inferred: classes 0, …, K - 1 (N,). labels: codes 0, 1, … (N,). classes: K.
        names: of the labels.
        same: whether class k is label k, so that rows on the diagonal are right.
    """
    inferred, labels = np.asarray(inferred, np.int64), np.asarray(labels, np.int64)
    K, L = classes, classes if same else int(labels.max()) + 1
    counts = np.zeros((L, K), np.int64)
    np.add.at(counts, (labels, inferred), 1)
    if same:
        title = (
            f"Inferred class (labels hidden): {(inferred == labels).mean():.1%} of {len(labels)}"
        )
        title += " labelled rows are right, on the diagonal"
    else:
        title = "Inferred class against a label the model did not see: number of rows"
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
    return figure


def table(
    means: ArrayLike,
    x: ArrayLike,
    classes: Sequence[str],
    title: str,
    columns: Sequence[str] | None = None,
) -> Figure:
    """Each class's mean of every column, in the data's standard deviations from their mean.

    Args:
        means: (K, P). x: data (N, P). classes, columns: what they are called.
    """
    means, x = np.asarray(means, np.float64), np.asarray(x, np.float64)
    spread = np.nanstd(x, 0)
    shown = (means - np.nanmean(x, 0)) / np.where(spread > 0, spread, 1.0)
    figure = Figure(figsize=(WIDTH, 1.6 + 0.3 * len(means)), layout="constrained")
    title_above(figure, title)
    axes = figure.subplots()
    limit = max(1.0, float(np.abs(shown).max()))
    drawn = axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(means)), classes, fontsize=TEXT - 1)
    if columns is not None and len(columns) <= 15:
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=TEXT - 2)
    else:
        axes.set_xlabel("column")
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05)
    bar.set_label("mean, sd of the data", fontsize=TEXT - 2)
    return figure


def _components(subject: RunView, observed: str, row: Tensor) -> dict[str, Any] | None:
    """Means, covariances and weights of a mixture's components; None where it is none."""
    site, responsibilities = next(iter(subject.classes.items()))
    count = responsibilities.shape[-1]
    means, covariances = [], []
    for component in predict.components(subject.pair, site, count, row):
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
