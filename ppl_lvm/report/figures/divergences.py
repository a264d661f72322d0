"""Figure of fits by several divergences."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Array
from ppl_lvm.divergences.mass_coverage import CoverageResult, CoverageResults
from ppl_lvm.report.figures.style import COLORS, GRAY, TEXT, WIDTH, limit_to, title_above, view

COLUMNS, POINTS = 2, 600


@checked
def coverage_figure(results: CoverageResults) -> Figure:
    """One panel per divergence, one color per start."""
    names = list(dict.fromkeys(row.divergence for row in results.rows))
    starts = list(dict.fromkeys(row.start for row in results.rows))
    lines = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.8 + 1.7 * lines), layout="constrained")
    title_above(figure, "Fits of one family to one target by each divergence")
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    assert results.target.draw is not None
    with preserve_rng():
        torch.manual_seed(0)
        x = results.target.draw(POINTS)
        for axes, name in zip(grid, names, strict=False):
            axes.set_title(name, fontsize=TEXT - 1)
            rows = [row for row in results.rows if row.divergence == name]
            (_line if x.shape[1] == 1 else _plane)(axes, results, rows, starts, x)
            axes.tick_params(labelsize=TEXT - 3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[max(0, len(names) - COLUMNS) : len(names)]:
        axes.tick_params(labelbottom=True)  # the lowest of each column
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    if len(starts) > 1:
        figure.set_figheight(figure.get_figheight() + 0.3)
        lines_of = [Line2D([], [], color=_color(starts, row)) for row in _first(results, starts)]
        figure.legend(lines_of, starts, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _first(results: CoverageResults, starts: list[str]) -> list[CoverageResult]:
    """First row of each start."""
    return [next(row for row in results.rows if row.start == start) for start in starts]


def _line(
    axes: Axes, results: CoverageResults, rows: list[CoverageResult], starts: list[str], x: Tensor
) -> None:
    """Densities over one column, with a histogram of a target of rows."""
    low, high = float(x.min()), float(x.max())
    margin = 0.3 * (high - low)
    points = torch.linspace(low - margin, high + margin, 400).to(x)[:, None]
    log_density = results.target.log_density
    if log_density is not None:
        height = log_density(points).exp()
        axes.fill_between(points[:, 0], height, color=GRAY)
        top = float(height.max())
    else:
        top = float(np.max(axes.hist(x[:, 0].tolist(), 40, density=True, color=GRAY)[0]))
    for row in rows:
        if row.family is not None:
            with torch.no_grad():
                q = row.family.density().log_prob(points).exp()
            axes.plot(points[:, 0], q, color=_color(starts, row))
    axes.set_ylim(0, 2.5 * top)  # a fit of one mode is higher than the target
    axes.set_yticks([])


def _plane(
    axes: Axes, results: CoverageResults, rows: list[CoverageResult], starts: list[str], x: Tensor
) -> None:
    """Samples in the plane of two columns, or of the target's two principal axes."""
    data = x.numpy()
    center, W, _ = view(data, None, None)
    axes.plot(*_in(data, center, W), ".", color=GRAY, markersize=3)
    for row in rows:
        if row.family is not None:
            with torch.no_grad():
                y = row.family.density().rsample((POINTS // 2,)).numpy()
            axes.plot(*_in(y, center, W), ".", color=_color(starts, row), markersize=2, alpha=0.6)
    limit_to(axes, (data - center) @ W)


def _in(rows: Array, center: Array, W: Array) -> Array:
    return np.asarray(((rows - center) @ W).T)


def _color(starts: list[str], row: CoverageResult) -> str:
    return COLORS[starts.index(row.start) % len(COLORS)]
