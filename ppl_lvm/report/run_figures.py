"""Figures of a run, drawn or saved.

Figures depend only on the traces of the programs, so users' models are drawn like bundled ones.
`RUN_FIGURES` collects all functions declared by `run_figure`; each returns None for models that
it does not apply to.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows
from ppl_lvm.report.figures import (
    arrays,
    classes,
    conditional,
    density,
    latents,
    sequences,
    topics,
    training,
)
from ppl_lvm.report.run_figure import RunFigure
from ppl_lvm.report.run_view import RunView

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run

SHOWN_ROWS = 2000
# In the order of a report.
MODULES = (training, density, classes, conditional, topics, sequences, latents)
RUN_FIGURES: dict[str, RunFigure] = {
    value.slug: value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, RunFigure)
}


def draw(run: "Run", data: Data, directory: Path) -> list[Path]:
    """Save the figures of a run in `directory`; returns the files."""
    files = []
    for slug, figure in figures(run, data).items():
        path = directory / f"{slug}.png"
        arrays.save(figure, path)
        files.append(path)
    return files


def figures(run: "Run", data: Data) -> dict[str, Figure]:
    """Slug -> figure for all applicable figures, from at most 2,000 rows of `data`.

    A figure that fails is omitted with a warning, so that it never costs a fit.
    """
    batch = first_rows(data, SHOWN_ROWS)
    view = RunView(run, data, batch)
    drawn = {}
    for slug, run_figure in RUN_FIGURES.items():
        if run_figure.needs_log_p:
            continue
        try:
            with preserve_rng():  # deterministic, without side effects
                torch.manual_seed(0)
                figure = run_figure(view)
        except Exception as error:
            reason = reason_of(error)
            warnings.warn(f"The picture {slug!r} could not be drawn: {reason}", stacklevel=2)
            continue
        if figure is not None:
            drawn[slug] = figure
    return drawn


def worst_rows(run: "Run", data: Data, batch: tuple[Tensor, ...], log_p: Tensor) -> Figure | None:
    """Rows of `batch` with the lowest `log_p` (N,); None for models without codes."""
    return latents.worst(RunView(run, data, batch), log_p)
