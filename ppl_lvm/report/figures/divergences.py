"""The picture of fits by several divergences: the target in grey, what each made of the family."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ppl_lvm.core.rng import own_draws
from ppl_lvm.divergences.mass_coverage import Covering, Coverings
from ppl_lvm.report.figures.style import (
    COLOURS,
    GREY,
    TEXT,
    WIDTH,
    Array,
    limit_to,
    title_above,
    view,
)

COLUMNS, POINTS = 2, 600


def fitted(found: Coverings) -> Figure:
    """One panel a divergence; in it one colour a start."""
    names = list(dict.fromkeys(row.divergence for row in found.rows))
    starts = list(dict.fromkeys(row.start for row in found.rows))
    lines = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.8 + 1.7 * lines), layout="constrained")
    title_above(figure, "One family, one target: what each divergence makes of it")
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    assert found.target.draw is not None
    with own_draws():
        torch.manual_seed(0)
        x = found.target.draw(POINTS)
        for axes, name in zip(grid, names, strict=False):
            axes.set_title(name, fontsize=TEXT - 1)
            rows = [row for row in found.rows if row.divergence == name]
            (_line if x.shape[1] == 1 else _plane)(axes, found, rows, starts, x)
            axes.tick_params(labelsize=TEXT - 3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[max(0, len(names) - COLUMNS) : len(names)]:
        axes.tick_params(labelbottom=True)  # the lowest of each column
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    if len(starts) > 1:
        figure.set_figheight(figure.get_figheight() + 0.3)
        lines_of = [Line2D([], [], color=_colour(starts, row)) for row in _first(found, starts)]
        figure.legend(lines_of, starts, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _first(found: Coverings, starts: list[str]) -> list[Covering]:
    """A row of each start."""
    return [next(row for row in found.rows if row.start == start) for start in starts]


def _line(axes: Axes, found: Coverings, rows: list[Covering], starts: list[str], x: Tensor) -> None:
    """Densities over one column; of a target of rows their histogram."""
    low, high = float(x.min()), float(x.max())
    margin = 0.3 * (high - low)
    points = torch.linspace(low - margin, high + margin, 400).to(x)[:, None]
    known = found.target.log_density
    if known is not None:
        height = known(points).exp()
        axes.fill_between(points[:, 0], height, color=GREY)
        top = float(height.max())
    else:
        top = float(np.max(axes.hist(x[:, 0].tolist(), 40, density=True, color=GREY)[0]))
    for row in rows:
        if row.family is not None:
            with torch.no_grad():
                q = row.family.density().log_prob(points).exp()
            axes.plot(points[:, 0], q, color=_colour(starts, row))
    axes.set_ylim(0, 2.5 * top)  # a family on one hill alone is higher than the target
    axes.set_yticks([])


def _plane(
    axes: Axes, found: Coverings, rows: list[Covering], starts: list[str], x: Tensor
) -> None:
    """Draws of both in the plane of two columns, or of the target's two principal axes."""
    data = x.numpy()
    centre, W, _ = view(data, None, None)
    axes.plot(*_in(data, centre, W), ".", color=GREY, markersize=3)
    for row in rows:
        if row.family is not None:
            with torch.no_grad():
                y = row.family.density().rsample((POINTS // 2,)).numpy()
            axes.plot(*_in(y, centre, W), ".", color=_colour(starts, row), markersize=2, alpha=0.6)
    limit_to(axes, (data - centre) @ W)


def _in(rows: Array, centre: Array, W: Array) -> Array:
    return np.asarray(((rows - centre) @ W).T)


def _colour(starts: list[str], row: Covering) -> str:
    return COLOURS[starts.index(row.start) % len(COLOURS)]
