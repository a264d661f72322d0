"""Figure of a sweep: scores by the values of options."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ppl_lvm.report.figures.style import COLORS, GRAY, TEXT, title_above

if TYPE_CHECKING:
    from pandas import DataFrame

NAMES = {"bound": "bound", "held_out": "bound on held-out rows"}


def sweep_figure(table: "DataFrame", options: Sequence[str], score: str) -> Figure:
    """One panel per option: a point per fit, and the best of each value joined by a line."""
    figure = Figure(figsize=(1 + 3 * len(options), 3.6), layout="constrained")
    title_above(figure, f"Sweep of {len(table)} fits")
    axes = figure.subplots(1, len(options), sharey=True, squeeze=False)[0]
    scored = table[table[score].notna()]
    for axis, option in zip(axes, options, strict=True):
        values = list(dict.fromkeys(scored[option].sort_values(key=lambda c: c.astype(str))))
        if all(isinstance(value, int | float) for value in values):
            values = sorted(values)
        names = [str(value) for value in values]
        best = [scored.loc[scored[option].astype(str) == name, score].max() for name in names]
        places = scored[option].astype(str).map(names.index)
        axis.plot(places, scored[score], "o", color=GRAY, markersize=4)
        axis.plot(range(len(names)), best, "o-", color=COLORS[0])
        axis.set_xticks(
            range(len(names)), names, fontsize=TEXT - 1, rotation=20 if len(names) > 4 else 0
        )
        axis.set_xlabel(option)
    axes[0].set_ylabel(f"{NAMES[score]}, nats per row")
    return figure
