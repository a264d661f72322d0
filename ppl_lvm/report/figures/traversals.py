"""Figures of latent traversals and of the worst-explained rows."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_lvm.core.types import Array
from ppl_lvm.report.figures.style import (
    COLORS,
    GRAY,
    TEXT,
    WIDTH,
    column_name,
    describe,
    legend_below,
    picture_grid,
    some_of,
    title_above,
)

MAX_COLUMNS = 7  # columns of a table drawn as lines


def traversals(
    decoded: ArrayLike,
    values: ArrayLike,
    latents: Sequence[str],
    *,
    image_shape: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    left_out: str = "",
) -> Figure:
    """Means of the model as one latent moves and the others stay at their mean.

    Args:
        decoded: means of p(x | z) (D, T, P) at T values of each of D latents.
        values: values of the latents (D, T).
        latents: names of the latents.
        image_shape: (H, W) of rows that are flattened pictures.
        names: names of the P columns.
        left_out: a note on the latents that are not drawn.
    """
    decoded, values = np.asarray(decoded, np.float64), np.asarray(values, np.float64)
    D, T, _ = decoded.shape
    if image_shape is not None:
        pictures = decoded.reshape(D * T, *image_shape)
        title = "Latent traversals: from left to right one latent moves, the others stay"
        mosaic = picture_grid(title + left_out, pictures, D, T, list(latents))
        change = np.ptp(decoded, axis=1).mean(1)
        order = np.argsort(-change)
        return describe(
            mosaic,
            f"{latents[order[0]]} changes a pixel most, by {change[order[0]]:.2f} on average, "
            f"{latents[order[-1]]} least, by {change[order[-1]]:.2f}.",
        )
    moved = np.ptp(decoded, axis=1)  # (D, P)
    scale = moved.max(axis=0)
    shown = np.argsort(-scale, kind="stable")[:MAX_COLUMNS]
    figure = Figure(figsize=(WIDTH, 0.7 + 1.5 * D), layout="constrained")
    left_out += some_of(len(shown), moved.shape[1], "columns, those that move most")
    title = "Latent traversals: columns of x as one latent moves, others at their mean"
    title_above(figure, title + left_out)
    grid = figure.subplots(D, 1, squeeze=False)[:, 0]
    for d, axes in enumerate(grid):
        for color, p in zip(COLORS, shown, strict=False):
            label = column_name(p, names)
            centered = decoded[d, :, p] - decoded[:, :, p].mean()
            axes.plot(values[d], centered / max(scale[p], 1e-12), color=color, label=label)
        axes.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
        axes.set_xlabel(latents[d], fontsize=TEXT - 1)
        axes.set_ylabel("x, scaled", fontsize=TEXT - 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TEXT - 2)
    legend_below(figure)
    parts = [f"{latents[d]} moves {column_name(int(moved[d].argmax()), names)}" for d in range(D)]
    return describe(figure, "; ".join(parts) + " most.")


def worst_explained(
    x: ArrayLike,
    reconstruction: ArrayLike,
    log_p: ArrayLike,
    *,
    image_shape: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    count: int = 10,
) -> Figure:
    """Rows of lowest log p(x), worst first, with their reconstructions.

    Args:
        x, reconstruction: rows (N, P).
        log_p: log p(x) (N,), nats.
    """
    x, back = np.asarray(x, np.float64), np.asarray(reconstruction, np.float64)
    log_p = np.asarray(log_p, np.float64)
    worst = np.argsort(log_p, kind="stable")[:count]
    summary = (
        f"log p(x) {log_p[worst[0]]:.1f} to {log_p[worst[-1]]:.1f}, median {np.median(log_p):.1f}"
    )
    if image_shape is not None:
        pairs = np.concatenate([x[worst], back[worst]]).reshape(-1, *image_shape)
        title = f"Worst explained, worst at the left: {summary}"
        grid = picture_grid(title, pairs, 2, len(worst), ["data", "model"])
        return describe(grid, f"Rows {', '.join(map(str, worst))}.")
    return _residuals(x, back, worst, names, f"Worst explained, worst on top: {summary}")


def _residuals(
    x: Array, back: Array, worst: Array, names: Sequence[str] | None, title: str
) -> Figure:
    """Residuals of the worst rows, standardized by column."""
    miss = x - back
    spread = miss.std(axis=0)
    shown = miss[worst] / np.where(spread > 0, spread, 1.0)  # (count, P)
    figure = Figure(figsize=(WIDTH, 1.4 + 0.28 * len(worst)), layout="constrained")
    title_above(figure, title)
    axes = figure.subplots()
    limit = max(3.0, float(np.abs(shown).max()))
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(worst)), [f"row {n}" for n in worst], fontsize=TEXT - 2)
    P = x.shape[1]
    if names is not None and P <= 15:
        axes.set_xticks(range(P), names, rotation=45, ha="right", fontsize=TEXT - 2)
    else:
        axes.set_xlabel("column")
    bar = figure.colorbar(image, ax=axes, fraction=0.05)
    bar.set_label("data − model, sd of all", fontsize=TEXT - 2)
    n, p = np.unravel_index(np.abs(shown).argmax(), shown.shape)
    return describe(
        figure,
        f"The largest residual is {shown[n, p]:+.1f} sd, {column_name(int(p), names)} of row "
        f"{worst[n]}.",
    )
