"""Pictures of a run by name.

    run.plot.training()       # a matplotlib figure
    dir(run.plot)             # the names

A picture is drawn, not shown: a notebook shows the value of a cell, and `figure.savefig` saves it.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

from ppl_lvm.core.messages import unknown
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.validate import DataSource
from ppl_lvm.data.selection import first_rows
from ppl_lvm.report.run_figures import RUN_FIGURES, SHOWN_ROWS
from ppl_lvm.report.run_view import RunView

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run


class RunPlots:
    """The pictures that a report has, as methods of rows x (default: those of the fit)."""

    def __init__(self, run: "Run") -> None:
        self._run = run

    def __dir__(self) -> list[str]:
        return sorted(RUN_FIGURES)

    def __repr__(self) -> str:
        return f"<Pictures of a run: {', '.join(dir(self))}>"

    def __getattr__(self, name: str) -> Any:
        if name in RUN_FIGURES:
            return partial(plot, self._run, name)
        raise AttributeError(unknown("picture", name, tuple(dir(self))))


@public_call
def plot(run: "Run", name: str, x: DataSource | None = None) -> Figure:
    """Draw the picture `name` from at most 2,000 rows.

    Raises:
        ValueError: the picture does not apply to the model.
    """
    if x is None:
        train, held_out = run.data()
        data = train if held_out is None else held_out
    else:
        data = run.rows(x)
    view = RunView(run, data, first_rows(data, SHOWN_ROWS))
    torch.manual_seed(0)
    picture = RUN_FIGURES[name]
    extra = (run.log_evidence(view.batch).per_row,) if picture.needs_log_p else ()
    figure = picture(view, *extra)
    if figure is None:
        raise ValueError(
            f"plot.{name}: this picture does not apply to {run.record['model']['name']}. "
            "ppl_lvm.report draws all that do."
        )
    return figure
