"""Pictures of sequences: data beside those the model makes up, and the states behind them."""

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.posterior import predict
from ppl_lvm.report.figures.style import (
    COLORS,
    GRAY,
    INK,
    TEXT,
    WIDTH,
    component_colors,
    title_above,
)
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

SHOWN, COLUMNS, STATES = 6, 3, 3


@run_figure(
    "sequences",
    caption="Both sides should agree in level, speed, oscillation and jumps.",
    alt_text="Sequences of the data, and sequences sampled from the model.",
)
def made_up(subject: RunView) -> Figure | None:
    """Sequences of the data and draws of the model; None for other models."""
    name = _site(subject)
    if name is None:
        return None
    count = min(SHOWN, len(subject.batch[0]))
    with preserve_rng():
        torch.manual_seed(0)
        drawn = predict.sample(subject.pair, *(t[:count] for t in subject.batch))[name]
    back = subject.decoded.get(name)
    seen = subject.values[name].where(_seen(subject, name), torch.nan)[:count]
    return beside(
        seen.cpu().numpy(),
        drawn.cpu().numpy(),
        None
        if back is None or back.shape != subject.values[name].shape
        else back[:count].cpu().numpy(),
    )


@run_figure(
    "states",
    caption="States should change where the sequence changes its behavior, certain in between.",
    alt_text="The probability of each hidden state along the first sequences.",
)
def states(subject: RunView) -> Figure | None:
    """Probabilities of hidden states under the first sequences, for a model that offers them.

    They are what `model.marginals(x)` gives, p(z_nt = s | x_n) (N, T, S).
    """
    name, own = _site(subject), getattr(subject.run.model, "marginals", None)
    if name is None or not callable(own):
        return None
    with torch.no_grad():
        found = own(*(t[:STATES] for t in subject.batch))
    seen = subject.values[name].where(_seen(subject, name), torch.nan)[:STATES]
    if not isinstance(found, torch.Tensor) or found.shape[:2] != seen.shape[:2]:
        return None
    return under(seen.cpu().numpy(), found.detach().cpu().numpy())


def beside(x: ArrayLike, drawn: ArrayLike, back: ArrayLike | None = None) -> Figure:
    """A row of plots for each of the first columns: data at the left, draws at the right.

    Args:
        x, drawn: (N, T, P), NaN where there is nothing. back: the model's mean of x at its codes.
    """
    x, drawn = np.asarray(x, np.float64), np.asarray(drawn, np.float64)
    P = min(COLUMNS, x.shape[2])
    figure = Figure(figsize=(WIDTH, 0.9 + 1.5 * P), layout="constrained")
    said = "" if back is None else " (thin: the model's mean at their codes)"
    title_above(figure, f"Sequences: data{said} at the left, the model's own at the right")
    grid = figure.subplots(P, 2, squeeze=False, sharex=True, sharey="row")
    for p in range(P):
        for axes, rows in zip(grid[p], (x, drawn), strict=True):
            for n, row in enumerate(rows):
                color = COLORS[n % len(COLORS)]
                axes.plot(row[:, p], color=color, linewidth=1.1, marker=".", markersize=2)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=TEXT - 2)
        if back is not None:
            for row in np.asarray(back, np.float64):
                grid[p, 0].plot(row[:, p], color=INK, linewidth=0.6)
        grid[p, 0].set_ylabel(f"column {p}", fontsize=TEXT - 1)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=TEXT - 1)
    return figure


def under(x: ArrayLike, probability: ArrayLike) -> Figure:
    """Sequences (N, T, P), and stacked under each column's line the states' probabilities.

    Args:
        x: (N, T, P), NaN where there is nothing; the first column is drawn.
        probability: of S states at each step (N, T, S).
    """
    x, probability = np.asarray(x, np.float64), np.asarray(probability, np.float64)
    N, T, S = probability.shape
    figure = Figure(figsize=(WIDTH, 0.9 + 1.4 * N), layout="constrained")
    title_above(figure, "Hidden states: column 0, over the probability of each state by colour")
    colors = component_colors(S)
    for n, axes in enumerate(figure.subplots(N, 1, squeeze=False, sharex=True)[:, 0]):
        behind = axes.twinx()
        behind.stackplot(range(T), probability[n].T, colors=[tuple(c) for c in colors], alpha=0.45)
        behind.set_ylim(0, 1)
        behind.set_yticks([])
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        axes.plot(x[n, :, 0], color=INK, linewidth=1.1, marker=".", markersize=2)
        axes.set_xlim(0, T - 1)
        axes.set_ylabel(f"row {n}", fontsize=TEXT - 1)
        axes.tick_params(labelsize=TEXT - 2)
        axes.spines[:].set_color(GRAY)
    axes.set_xlabel("step", fontsize=TEXT - 1)
    handles = behind.collections
    figure.legend(
        handles,
        [f"state {s + 1}" for s in range(S)],
        loc="outside lower center",
        ncols=min(S, 5),
        frameon=False,
        fontsize=TEXT - 1,
    )
    return figure


def _site(subject: RunView) -> str | None:
    """The one observed site, of sequences (N, T, P)."""
    found = [n for n, v in subject.values.items() if v.dim() == 3 and v.shape[1] > 1]
    return found[0] if len(found) == len(subject.values) == 1 else None


def _seen(subject: RunView, name: str) -> torch.Tensor:
    """Which values there are: NaN in the batch says that there is none."""
    x, value = subject.batch[0], subject.values[name]
    return ~x.isnan().reshape(value.shape) if x.numel() == value.numel() else value.isfinite()
