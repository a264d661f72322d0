"""The picture of a comparison: how far each run is from the best, and by how much chance may be."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from ppl_lvm.report.figures.style import COLORS, GRAY, TEXT, legend_below, plot
from ppl_lvm.report.run_figure import Picture
from ppl_lvm.runs.comparison import SIGNIFICANCE_Z, Comparison


def comparison_figure(found: Comparison) -> Figure:
    """One row a run, best at the top: its difference to the best with one and 2.5 errors."""
    best = found.order[0]
    figure, axes = plot(
        "Runs beside the best: what is lost in log p(x)", height=1.5 + 0.4 * len(found.scores)
    )
    axes.axvline(0, color=GRAY, linewidth=1.2)
    for at, i in enumerate(found.order):
        worse = found.verdict(i) == "worse"
        color = COLORS[4] if worse else COLORS[0]
        difference, error = found.difference(i, best)
        error = 0.0 if i == best else error
        for width, times in ((1.2, SIGNIFICANCE_Z), (4.0, 1.0)):
            ends = [difference - times * error, difference + times * error]
            axes.plot(ends, [at, at], color=color, linewidth=width, solid_capstyle="butt")
        axes.plot(difference, at, "o", color=color, markersize=6)
        loo = found.loo_difference(i, best)
        if loo is not None:
            label = "leave-one-out, 1 error" if at == 0 else None
            axes.errorbar(
                loo[0], at + 0.25, xerr=loo[1], fmt="s", color=COLORS[2], markersize=4, label=label
            )
    names = [textwrap.fill(found.scores[i].name, 18) for i in found.order]
    axes.set_yticks(np.arange(len(names)), names, fontsize=TEXT - 1)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("nats per row; bars: 1 and 2.5 standard errors")
    if axes.get_legend_handles_labels()[1]:
        legend_below(figure)
    return figure


def picture(found: Comparison) -> Picture:
    """With how to read it and its text."""
    best = found.order[0]
    said = [f"{found.scores[best].name} is best at {found.scores[best].value:.3f}"]
    for i in found.order[1:]:
        difference, error = found.difference(i, best)
        said.append(f"{found.scores[i].name} {difference:+.3f} ± {error:.3f} ({found.verdict(i)})")
    return Picture(
        "Differences",
        comparison_figure(found),
        "A run whose thin bar reaches the line at 0 is not told apart from the best.",
        "; ".join(said) + f"; {found.rows}.",
    )
