"""Common style: size, colors, titles, legends."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.types import Array
from ppl_lvm.core.validate import Count

# Contrast of at least 3 on white and on the dark page; farthest apart in CIELAB, also as seen with
# protanopia, deuteranopia and tritanopia (Machado et al. 2009). The fifth is for what fails.
COLORS = ("#2395F8", "#A8802D", "#46713A", "#7A56A9", "#D01875", "#8492AA", "#DD7571")
MARKERS = ("o", "^", "s", "X")
GRAY, INK = "#8C8C8C", "#222222"
WIDTH, TEXT = 4.8, 10  # inches, points: readable when the picture is 360 pixels wide
MAX_POINTS = 5000  # more would only overplot


def describe(figure: Figure, finding: str, caption: str = "") -> Figure:
    """Store what a figure shows, one sentence, and a caption in place of that of its kind."""
    figure.set_label(f"{finding}\n{caption}")
    return figure


def description(figure: Figure) -> tuple[str, str]:
    """Finding and caption of a figure; empty where none are stored."""
    finding, _, caption = str(figure.get_label() or "").partition("\n")
    return finding, caption


def least_range(axes: Axes, least: float) -> None:
    """Widen the vertical range to `least`, so that rounding is not drawn as a trend."""
    low, high = axes.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def some_of(shown: int, total: int, what: str) -> str:
    """A note on what is left out, " (3 of 4 latents)"; empty where all are shown."""
    return f" ({shown} of {total} {what})" if shown < total else ""


def column_name(p: int, names: Sequence[str] | None) -> str:
    """The name of column p, or its index where columns have no names."""
    return f"column {p}" if names is None else str(names[p])


def plot(title: str, height: float = 3.6) -> tuple[Figure, Axes]:
    """One plot below a wrapped title."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    title_above(figure, title)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TEXT - 1)
    axes.ticklabel_format(useOffset=False)  # "1e-8 − 19.76" is no axis
    return figure, axes


def title_above(figure: Figure, title: str) -> None:
    """Add a wrapped title."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.08, h_pad=0.06)  # inches, or labels touch the edge
    figure.suptitle(
        textwrap.fill(title, 58), x=0.02, ha="left", fontsize=TEXT, fontweight="bold", color=INK
    )


@checked
def picture_grid(
    title: str, pictures: Array, rows: Count, columns: Count, names: Sequence[str]
) -> Figure:
    """Pictures (N, H, W) row by row on one gray scale, with a name before each row.

    Raises:
        ValueError: the pictures are no array (N, H, W), or the names are not one for each row.
    """
    if pictures.ndim != 3 or pictures.dtype.kind not in "fiub" or not pictures.size:
        raise ValueError(
            f"picture_grid: pictures of {pictures.dtype} and shape {pictures.shape}. Pass numbers "
            "of shape (N, H, W)."
        )
    if len(names) != rows:
        raise ValueError(
            f"picture_grid: {len(names)} names for rows={rows}. Pass a name for each row."
        )
    ratio = pictures.shape[1] / pictures.shape[2]
    figure = Figure(
        figsize=(WIDTH, max(1.6, 0.6 + rows * ratio * WIDTH / (columns + 1))), layout="constrained"
    )
    title_above(figure, title)
    axes = figure.subplots()
    image = mosaic(pictures, rows, columns)
    axes.imshow(image, cmap="gray_r", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    step = (image.shape[0] + gap(pictures)) / rows
    axes.set_yticks(
        [r * step + (pictures.shape[1] - 1) / 2 for r in range(rows)], names, fontsize=TEXT
    )
    axes.tick_params(length=0)
    return figure


def mosaic(pictures: Array, rows: int, columns: int) -> Array:
    """Pictures (N, H, W) as one image, row by row, with NaN in the gaps and at the end.

    One array on one axis, since the layout of forty axes would take seconds.
    """
    _, H, W = pictures.shape
    margin = gap(pictures)
    image = np.full((rows * (H + margin) - margin, columns * (W + margin) - margin), np.nan)
    for n, picture in enumerate(pictures[: rows * columns]):
        top, left = n // columns * (H + margin), n % columns * (W + margin)
        image[top : top + H, left : left + W] = picture
    return image


def gap(pictures: Array) -> int:
    """Pixels between two pictures of a mosaic."""
    return max(1, pictures.shape[1] // 8)


def circle() -> Array:
    """Points of the unit circle (2, 100)."""
    angle = np.linspace(0, 2 * np.pi, 100)
    return np.stack([np.cos(angle), np.sin(angle)])


def thin(count: int) -> Array:
    """At most `MAX_POINTS` evenly spaced row indices."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(int))


def write_at(axes: Axes, point: Sequence[float] | Array, text: str) -> None:
    """Write bold text with a white outline at a point."""
    halo = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(
        text,
        (float(point[0]), float(point[1])),
        ha="center",
        va="center",
        fontsize=TEXT - 1,
        fontweight="bold",
        color=INK,
        path_effects=halo,
        annotation_clip=True,
    )


def note(axes: Axes, text: str) -> None:
    """Write a small note in the upper left corner."""
    axes.text(
        0.01, 0.99, text, transform=axes.transAxes, va="top", fontsize=TEXT - 2, color="#555555"
    )


def message(axes: Axes, text: str) -> Figure:
    """Write a text in place of a plot."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=TEXT)
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def legend_below(figure: Figure) -> None:
    """Add a legend below the plot in as many columns as fit, and enlarge the figure."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    longest = max(len(name) for name in names)
    rows = -(-len(names) // max(1, 44 // (longest + 4)))
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=-(-len(names) // rows),
        frameon=False,
        fontsize=TEXT - 1,
        markerscale=1.8,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def component_colors(count: int) -> Array:
    """RGB (K, 3), repeated after seven, since components also have numbers."""
    rgb = [[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in COLORS]
    return np.array([rgb[k % len(rgb)] for k in range(count)])


def limit_to(axes: Axes, points: Array) -> None:
    """Limit the axes to the data with a margin, whatever the width of the components."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-9)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


def view(
    x: Array, columns: tuple[int, int] | None, names: Sequence[str] | None
) -> tuple[Array, Array, list[str]]:
    """Center (P,), two directions (P, 2) and axis labels of a projection."""
    P = x.shape[1]
    if columns is None and P > 2:
        center, sd = x.mean(axis=0), x.std(axis=0)
        sd = np.where(sd > 0, sd, 1.0)  # columns have different units
        _, length, axes = np.linalg.svd((x - center) / sd, full_matrices=False)
        share = length**2 / max(float((length**2).sum()), np.finfo(np.float64).tiny)
        W = axes[:2].T
        W = W * np.where(W[np.abs(W).argmax(axis=0), [0, 1]] < 0, -1, 1)  # fixes the sign
        W = W / sd[:, None]
        words = ("first", "second")
        return (
            center,
            W,
            [f"{w} axis, columns in sd ({s:.1%})" for w, s in zip(words, share, strict=False)],
        )
    pair = (0, 1) if columns is None else columns
    labels = [column_name(p, names) for p in pair]
    return np.zeros(P), np.eye(P)[:, list(pair)], labels
