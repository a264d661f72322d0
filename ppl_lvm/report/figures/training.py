"""Figure of training: the bound against the step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ppl_lvm.core.types import Array
from ppl_lvm.report.figures.style import (
    COLORS,
    GRAY,
    describe,
    least_range,
    legend_below,
    message,
    note,
    plot,
)
from ppl_lvm.report.run_figure import run_figure

if TYPE_CHECKING:
    from ppl_lvm.report.run_view import RunView

LEAST_NATS = 0.05  # vertical range of a bound


@run_figure(
    "training",
    caption="A flat curve has converged; a gap to the validation curve is overfitting.",
    alt_text="The bound in nats per row against the step.",
)
def training(view: "RunView") -> Figure:
    """Training curve of a run."""
    return training_curve(view.run.history)


def training_curve(history: Mapping[str, Sequence[float]]) -> Figure:
    """Bound at every step, its running mean, and the validation bound.

    Args:
        history: `bound`, one value per step; optionally `step`, `seconds` (since the start),
            `validation_step` and `validation_bound`. Bounds are nats per row.
    """
    bound = np.asarray(history["bound"], np.float64)
    step = np.asarray(history.get("step", np.arange(1, len(bound) + 1)))
    figure, axes = plot("Training: the bound on log p(x); higher is better")
    axes.set_ylabel("nats per row")
    axes.set_xlabel("step" + _duration(history.get("seconds", ())))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(bound) == 0:
        return message(axes, "no step was taken")
    window = max(1, len(bound) // 50)
    if window > 1:
        axes.plot(step, bound, color=GRAY, linewidth=0.6, label="each step")
    mean, middle = _running_mean(bound, window), step[window - 1 :]
    label = f"mean of {window} steps" if window > 1 else "training"
    axes.plot(middle, mean, color=COLORS[0], linewidth=1.6, label=label)
    if len(bound) == 1:
        axes.plot(step, bound, "o", color=COLORS[0])
    curves = [bound]
    held_out = np.asarray(history.get("validation_bound", ()), np.float64)
    if len(held_out):
        steps = np.asarray(history["validation_step"])
        marker = "o" if len(held_out) <= 30 else ""
        axes.plot(steps, held_out, marker=marker, markersize=3, color=COLORS[4], label="validation")
        curves.append(held_out)
    _limit_to_later_steps(axes, curves)
    least_range(axes, LEAST_NATS)
    describe(figure, trend(step, bound))
    if len(axes.get_lines()) > 1:
        legend_below(figure)
    return figure


def trend(step: ArrayLike, bound: ArrayLike) -> str:
    """One sentence on a curve: from where to where, and since when it is flat.

    Flat is the end within 0.01 nats, a hundredth of the range, and the noise of its mean.
    """
    step, bound = np.asarray(step), np.asarray(bound, np.float64)
    window = max(1, len(bound) // 50)
    mean, at = _running_mean(bound, window), step[window - 1 :]
    last, noise = mean[-1], float(bound[-window:].std()) / np.sqrt(window)
    within = np.abs(mean - last) <= max(0.01, 0.01 * float(np.ptp(mean)), 3 * noise)
    late = np.flatnonzero(~within)
    since = 0 if not len(late) else int(late[-1]) + 1
    verb = "Rose" if last > mean[0] else "Fell"
    if since == 0:
        return f"Flat at {last:.4f} nats per row."
    tail = (
        f"flat after step {at[since]:,}"
        if since < 0.9 * len(mean)
        else f"not flat at its end, step {at[-1]:,}"
    )
    return f"{verb} from {mean[0]:.4g} to {last:.4f} nats per row, {tail}."


def _limit_to_later_steps(axes: Axes, curves: Sequence[Array]) -> None:
    """Cut off the first steps of a fit, which would flatten the others, with a note."""
    every = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    later = np.concatenate([c[len(c) // 10 :][np.isfinite(c[len(c) // 10 :])] for c in curves])
    if len(later) == 0:
        return
    low, high = np.quantile(later, 0.02), every.max()
    low -= 0.1 * (high - low)
    # At least a tenth of the total increase: else a converged run shows only noise.
    low = min(low, high - 0.1 * (every.max() - every.min()))
    if high - low < 0.3 * (every.max() - every.min()):
        axes.set_ylim(low, high + 0.05 * (high - low))
        note(axes, f"starts below the picture, at {every.min():.4g}")


def _running_mean(values: Array, window: int) -> Array:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _duration(seconds: Sequence[float]) -> str:
    return f" ({seconds[-1]:.3g} s in all)" if len(seconds) else ""
