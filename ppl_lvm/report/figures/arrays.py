"""Figures of a fit: plain arrays to a matplotlib figure.

Figures are built without pyplot, so no window opens and no state is shared. Titles are
self-contained, figures fit the width of a phone, and colors are safe for color blindness.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.storage import write_atomic
from ppl_lvm.core.types import Array
from ppl_lvm.report.figures.style import (
    COLORS,
    GRAY,
    INK,
    MARKERS,
    circle,
    column_name,
    component_colors,
    describe,
    legend_below,
    limit_to,
    note,
    picture_grid,
    plot,
    some_of,
    thin,
    view,
    write_at,
)

MAX_CLASSES = len(COLORS) * len(MARKERS)


def mixture(
    x: ArrayLike,
    responsibilities: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    weights: ArrayLike,
    *,
    columns: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Data colored by component, with the ellipses of each component.

    The projection to the data's first two principal axes W (P, 2), or to two `columns`, of a
    component N(μ, Σ) is N(Wᵀμ, WᵀΣW). The ellipses are 1 and 2 standard deviations from its mean.

    Args:
        x: data (N, P).
        responsibilities: p(component | x) (N, K).
        means: (K, P).
        covariances: (K, P, P).
        weights: (K,).
        columns: indices of two columns in place of the principal axes.
        names: names of the P columns.
    """
    x, means = np.asarray(x, np.float64), np.asarray(means, np.float64)
    covariances, weights = np.asarray(covariances, np.float64), np.asarray(weights, np.float64)
    if x.shape[1] == 1:
        return _mixture_on_a_line(x[:, 0], means[:, 0], covariances[:, 0, 0], weights, names)
    center, W, labels = view(x, columns, names)
    figure, axes = plot(
        f"Mixture of {len(weights)} components: data colored by component, "
        "ellipses at 1 and 2 standard deviations",
        height=4.2,
    )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    colors = component_colors(len(weights))  # (K, 3)
    projected = (x - center) @ W  # (N, 2)
    rows = thin(len(x))
    blended = np.clip(np.asarray(responsibilities, np.float64) @ colors, 0, 1)  # (N, 3)
    axes.scatter(
        projected[rows, 0], projected[rows, 1], c=blended[rows], s=9, alpha=0.7, linewidths=0
    )
    limit_to(axes, projected)
    unit_circle = circle()  # (2, 100)
    for k in np.argsort(weights):
        middle, spread = (means[k] - center) @ W, W.T @ covariances[k] @ W
        values, vectors = np.linalg.eigh(spread)
        root = vectors * np.sqrt(np.maximum(values, 0))  # (2, 2) root rootᵀ = WᵀΣW
        used = weights[k] >= 0.01
        color, style = (colors[k], "-") if used else (GRAY, ":")
        for radius, width in ((1, 1.6), (2, 0.9)):
            ring = middle[:, None] + radius * root @ unit_circle
            axes.plot(*ring, color=color, linestyle=style, linewidth=width)
        if used:
            write_at(axes, middle, f"{k}: {weights[k]:.0%}")
    empty = int((weights < 0.01).sum())
    if empty:
        verb = "component has" if empty == 1 else "components have"
        note(axes, f"{empty} {verb} a weight below 1% (dotted)")
    return describe(figure, _mixture_finding(np.asarray(responsibilities), weights))


def _mixture_finding(responsibilities: Array, weights: Array) -> str:
    parts = ", ".join(f"{k}: {w:.0%}" for k, w in enumerate(weights))
    unclear = float((responsibilities.max(1) < 0.7).mean())
    return f"Weights {parts}; {unclear:.1%} of rows belong to no component with 70%."


def samples(
    x: ArrayLike, image_shape: tuple[int, int] | None = None, data: ArrayLike | None = None
) -> Figure:
    """Samples of the model: pictures, or points with those of the data.

    Args:
        x: samples (N, P) or pictures (N, H, W).
        image_shape: (H, W) of rows that are flattened pictures.
        data: observed rows (M, P) for comparison; not used for pictures.
    """
    x = np.asarray(x, np.float64)
    pictures = _pictures(x, image_shape)
    if pictures is not None:
        columns = min(8, len(pictures))
        rows = -(-min(len(pictures), 40) // columns)
        return picture_grid(
            "Samples from the model", pictures, rows, columns, ["" for _ in range(rows)]
        )
    figure, axes = plot("Samples from the model" + " and the data" * (data is not None))
    flat = x.reshape(len(x), -1)
    real = flat if data is None else np.asarray(data, np.float64).reshape(-1, flat.shape[1])
    if flat.shape[1] == 1:
        edges = np.histogram_bin_edges(np.concatenate([flat[:, 0], real[:, 0]]), 30).tolist()
        axes.set_xlabel("value")
        axes.set_ylabel("density")
        if data is not None:
            axes.hist(real[:, 0], edges, density=True, color=GRAY, label="data")
        line = {"histtype": "step", "color": COLORS[0], "linewidth": 1.6}
        axes.hist(flat[:, 0], edges, density=True, label="samples", **line)  # type: ignore[arg-type]
    else:
        center, W, labels = view(real, None, None)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        for points, color, label in ((real, GRAY, "data"), (flat, COLORS[0], "samples")):
            if label == "samples" or data is not None:
                shown = ((points - center) @ W)[thin(len(points))]
                axes.scatter(
                    shown[:, 0], shown[:, 1], s=8, color=color, linewidths=0, alpha=0.8, label=label
                )
    if data is not None:
        legend_below(figure)
        spread = np.where(real.std(0) > 0, real.std(0), 1.0)
        shift, ratio = np.abs(flat.mean(0) - real.mean(0)) / spread, flat.std(0) / spread
        far = int(np.abs(np.log(np.maximum(ratio, 1e-9))).argmax())
        describe(
            figure,
            f"Means of columns differ by at most {shift.max():.2f} sd; the sd of samples is "
            f"{ratio[far]:.2f} times that of data in the column where they differ most.",
            "Samples should cover the data's cloud, not more and not less.",
        )
    return figure


def reconstructions(
    x: ArrayLike,
    reconstruction: ArrayLike,
    image_shape: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Data and their reconstructions.

    Args:
        x, reconstruction: rows (N, P) or pictures (N, H, W), with the same order of rows.
        image_shape: (H, W) of rows that are flattened pictures.
        names: names of the columns.
    """
    x, back = np.asarray(x, np.float64), np.asarray(reconstruction, np.float64)
    above, below = _pictures(x, image_shape), _pictures(back, image_shape)
    if above is not None and below is not None:
        count = min(len(above), 10)
        pairs = np.concatenate([above[:count], below[:count]])
        title = "Reconstructions: data above, means of the model below"
        title += some_of(count, len(above), "rows")
        error = float(((above - below) ** 2).mean() / max(above.var(0).mean(), 1e-12))
        grid = picture_grid(title, pairs, 2, count, ["data", "model"])
        return describe(grid, f"The squared error is {error:.0%} of the variance over rows.")
    figure, axes = plot("Each value against the mean of the model at its row's code")
    flat, decoded = x.reshape(len(x), -1), back.reshape(len(back), -1)
    spread = flat.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    across, up = (flat - flat.mean(axis=0)) / scale, (decoded - flat.mean(axis=0)) / scale
    axes.axline((0, 0), slope=1, color=GRAY, linewidth=1.2)
    many = flat.shape[1] > len(COLORS)
    for p in range(flat.shape[1]):
        color = COLORS[0] if many else COLORS[p]
        label = None if many else column_name(p, names)
        axes.scatter(across[:, p], up[:, p], s=8, color=color, linewidths=0, alpha=0.7, label=label)
    axes.set_xlabel("data (standard deviations of the column)")
    axes.set_ylabel("mean of the model (same units)")
    if not many:
        legend_below(figure)
    left = 1 - ((across - up) ** 2).mean(0) / np.maximum(across.var(0), 1e-12)
    low, high = int(left.argmin()), int(left.argmax())
    return describe(
        figure,
        f"The codes explain {left[low]:.0%} ({column_name(low, names)}) to {left[high]:.0%} "
        f"({column_name(high, names)}) of the variance of a column.",
        "On the line a value is reproduced; a flat cloud is a column that the codes ignore.",
    )


def latent_plane(
    codes: ArrayLike,
    labels: ArrayLike | None = None,
    label_names: Sequence[str] | None = None,
    site: str = "z",
) -> Figure:
    """Posterior means in the plane of the two latents with the largest variance.

    Args:
        codes: posterior means (N, D).
        labels: classes (-1: no label) or real values, (N,).
        label_names: names of the classes 0, 1, ....
        site: name of the latent.
    """
    codes = np.asarray(codes, np.float64).reshape(len(np.asarray(codes)), -1)
    variance = codes.var(axis=0)
    first = sorted(np.argsort(-variance, kind="stable")[:2])
    rest = (
        f", the {len(first)} of {codes.shape[1]} latents that vary most"
        if codes.shape[1] > 2
        else ""
    )
    title = f"Latent plane: each point is a row{rest}"
    figure, axes = plot(title, height=4.0)
    axes.set_xlabel(f"{site}[{first[0]}] (variance {variance[first[0]]:.3g})")
    if len(first) == 2:
        axes.set_ylabel(f"{site}[{first[1]}] (variance {variance[first[1]]:.3g})")
        points = codes[:, first]
    else:
        axes.set_yticks([])
        axes.set_ylabel("(random height)")
        points = np.stack([codes[:, 0], np.random.default_rng(0).uniform(size=len(codes))], axis=1)
    rows = thin(len(points))
    axis_names = " and ".join(f"{site}[{d}]" for d in first)
    describe(figure, f"{len(points):,} rows over {axis_names}; sd {_sds(points[:, : len(first)])}.")
    if labels is None:
        axes.scatter(
            points[rows, 0], points[rows, 1], s=9, color=COLORS[0], alpha=0.7, linewidths=0
        )
        return figure
    values = np.asarray(labels)
    is_unlabeled = values == -1 if values.dtype.kind == "i" else np.zeros(len(values), np.bool_)
    classes = np.unique(values[~is_unlabeled])
    if values.dtype.kind == "f" or len(classes) > MAX_CLASSES:
        scatter = axes.scatter(
            points[rows, 0], points[rows, 1], s=9, c=values[rows], cmap="viridis", linewidths=0
        )
        figure.colorbar(scatter, ax=axes, label="label", fraction=0.05)
        return figure
    unlabeled = rows[is_unlabeled[rows]]
    if len(unlabeled):
        x, y = points[unlabeled].T
        axes.scatter(x, y, s=9, color=GRAY, linewidths=0, label="no label")
    for k, value in enumerate(classes):
        of_class = rows[values[rows] == value]
        name = str(value) if label_names is None else label_names[int(value)]
        axes.scatter(
            points[of_class, 0],
            points[of_class, 1],
            s=12,
            color=COLORS[k % len(COLORS)],
            marker=MARKERS[k // len(COLORS)],
            alpha=0.8,
            linewidths=0,
            label=textwrap.shorten(name, 24, placeholder="…"),
        )
        if len(classes) > len(COLORS):  # colors repeat
            write_at(axes, np.median(points[of_class], 0), textwrap.shorten(name, 12))
    legend_below(figure)
    share = nearest_label_agreement(points[rows], values[rows])
    return describe(
        figure,
        f"The nearest row in the plane of {axis_names} has the same label for {share:.0%} of the "
        "rows.",
    )


def nearest_label_agreement(points: Array, labels: Array) -> float:
    """Share of rows whose nearest other row has their label, over at most 500 labeled rows."""
    known = np.flatnonzero(labels != -1)[:500]
    distance = ((points[known, None] - points[None, known]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return float((labels[known][distance.argmin(1)] == labels[known]).mean())


def _sds(points: Array) -> str:
    return " and ".join(f"{s:.2f}" for s in points.std(0))


@checked
def save(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically; the format follows the suffix.

    Raises:
        ValueError: matplotlib writes no such format.
    """
    formats = figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise ValueError(
            f"save: path={str(path)!r} ends in no format of a figure. Use one of "
            f"{', '.join(sorted(formats))}."
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format=Path(path).suffix[1:])
    write_atomic(Path(path), buffer.getvalue())


def _pictures(x: Array, image_shape: tuple[int, int] | None) -> Array | None:
    """Pictures (N, H, W), None if rows are not pictures."""
    if image_shape is not None:
        return x.reshape(len(x), *image_shape)
    return x if x.ndim == 3 else None


def _mixture_on_a_line(
    x: Array, means: Array, variances: Array, weights: Array, names: Sequence[str] | None
) -> Figure:
    """Histogram with the density of each component and of the mixture."""
    figure, axes = plot(f"Mixture of {len(weights)} components: densities over the data")
    axes.hist(x, bins=30, density=True, color=GRAY)
    grid = np.linspace(x.min(), x.max(), 400)
    sd = np.sqrt(np.maximum(variances, np.finfo(np.float64).tiny))[:, None]
    density = np.exp(-0.5 * ((grid - means[:, None]) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    density = weights[:, None] * density  # (K, 400)
    for k, color in enumerate(component_colors(len(weights))):
        axes.plot(grid, density[k], color=color, linewidth=1.6)
        write_at(axes, (grid[density[k].argmax()], density[k].max()), f"{k}: {weights[k]:.0%}")
    axes.plot(grid, density.sum(axis=0), color=INK, linewidth=1, linestyle="--")
    axes.set_xlabel(column_name(0, names))
    axes.set_ylabel("density")
    parts = ", ".join(
        f"{k}: {w:.0%} at {m:.3g}" for k, (w, m) in enumerate(zip(weights, means, strict=True))
    )
    return describe(figure, f"Components {parts}.")
