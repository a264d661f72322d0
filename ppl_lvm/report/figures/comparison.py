"""Figure of a comparison: differences to the best run."""

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from ppl_lvm.core.arguments import checked
from ppl_lvm.report.figures.style import COLORS, GRAY, TEXT, legend_below, plot
from ppl_lvm.report.run_figure import Picture
from ppl_lvm.runs.comparison import SIGNIFICANCE_Z, Comparison


@checked
def comparison_figure(comparison: Comparison) -> Figure:
    """One row per run, best first: difference to the best with 1 and 2.5 standard errors."""
    best = comparison.order[0]
    figure, axes = plot(
        "Difference to the best run in log p(x)", height=1.5 + 0.4 * len(comparison.scores)
    )
    axes.axvline(0, color=GRAY, linewidth=1.2)
    for at, i in enumerate(comparison.order):
        worse = comparison.verdict(i) == "worse"
        color = COLORS[4] if worse else COLORS[0]
        difference, error = comparison.difference(i, best)
        error = 0.0 if i == best else error
        for width, times in ((1.2, SIGNIFICANCE_Z), (4.0, 1.0)):
            ends = [difference - times * error, difference + times * error]
            axes.plot(ends, [at, at], color=color, linewidth=width, solid_capstyle="butt")
        axes.plot(difference, at, "o", color=color, markersize=6)
        loo = comparison.loo_difference(i, best)
        if loo is not None:
            label = "leave-one-out, 1 error" if at == 0 else None
            axes.errorbar(
                loo[0], at + 0.25, xerr=loo[1], fmt="s", color=COLORS[2], markersize=4, label=label
            )
    names = [textwrap.fill(comparison.scores[i].name, 18) for i in comparison.order]
    axes.set_yticks(np.arange(len(names)), names, fontsize=TEXT - 1)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("nats per row; bars: 1 and 2.5 standard errors")
    if axes.get_legend_handles_labels()[1]:
        legend_below(figure)
    return figure


def picture(comparison: Comparison) -> Picture:
    """The figure with caption and alternative text."""
    best = comparison.order[0]
    parts = [f"{comparison.scores[best].name} is best at {comparison.scores[best].value:.3f}"]
    for i in comparison.order[1:]:
        difference, error = comparison.difference(i, best)
        spread = "" if math.isnan(error) else f" ± {error:.3f}"
        parts.append(
            f"{comparison.scores[i].name} {difference:+.3f}{spread} ({comparison.verdict(i)})"
        )
    return Picture(
        "Differences",
        comparison_figure(comparison),
        "A run whose thin bar reaches 0 does not differ significantly from the best. A run without "
        "a bar has a high k̂, and its error is unknown.",
        "; ".join(parts) + f"; {comparison.rows}.",
    )
