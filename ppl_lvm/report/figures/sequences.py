"""Figures of sequences: data with samples, and hidden states."""

from collections.abc import Sequence

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
    column_name,
    component_colors,
    describe,
    legend_below,
    some_of,
    title_above,
    write_at,
)
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

SHOWN, COLUMNS, STATES = 5, 3, 3


@run_figure(
    "sequences",
    caption="Both sides should agree in level, speed, oscillation and jumps.",
    alt_text="Sequences of the data, and sequences sampled from the model.",
)
def sampled_sequences(view: RunView) -> Figure | None:
    """Sequences of the data and samples of the model."""
    name = _site(view)
    if name is None:
        return None
    count = min(SHOWN, len(view.batch[0]))
    with preserve_rng():
        torch.manual_seed(0)
        samples = predict.sample(view.pair, *(t[:count] for t in view.batch))[name]
    back = view.decoded.get(name)
    observed = view.values[name].where(_observed(view, name), torch.nan)[:count]
    return data_and_samples(
        observed.cpu().numpy(),
        samples.cpu().numpy(),
        None
        if back is None or back.shape != view.values[name].shape
        else back[:count].cpu().numpy(),
        view.data.columns,
        len(view.batch[0]),
    )


@run_figure(
    "states",
    caption="States should change where the sequence changes its behavior, certain in between.",
    alt_text="The probability of each hidden state along the first sequences.",
)
def states(view: RunView) -> Figure | None:
    """Probabilities of the hidden states of the first sequences, for models with `marginals`.

    `model.marginals(x)` returns p(z_nt = s | x_n) (N, T, S).
    """
    name, marginals = _site(view), getattr(view.run.model, "marginals", None)
    if name is None or not callable(marginals):
        return None
    with torch.no_grad():
        probability = marginals(*(t[:STATES] for t in view.batch))
    observed = view.values[name].where(_observed(view, name), torch.nan)[:STATES]
    if not isinstance(probability, torch.Tensor) or probability.shape[:2] != observed.shape[:2]:
        return None
    return state_probabilities(
        observed.cpu().numpy(), probability.detach().cpu().numpy(), view.data.columns
    )


def data_and_samples(
    x: ArrayLike,
    samples: ArrayLike,
    back: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    total: int | None = None,
) -> Figure:
    """One row of plots for each sequence: data left, a sample right, a line for each column.

    Args:
        x, samples: (N, T, P), NaN where missing.
        back: mean of x at its codes.
        names: names of the columns.
        total: number of sequences of the data.
    """
    x, samples = np.asarray(x, np.float64), np.asarray(samples, np.float64)
    N, P = min(SHOWN, len(x)), min(COLUMNS, x.shape[2])
    figure = Figure(figsize=(WIDTH, 1.2 + 0.95 * N), layout="constrained")
    suffix = "" if back is None else " (dark: mean at its code)"
    left_out = some_of(N, total or len(x), "sequences") + some_of(P, x.shape[2], "columns")
    title_above(figure, f"Sequences: data{suffix} left, samples of the model right{left_out}")
    grid = figure.subplots(N, 2, squeeze=False, sharex=True, sharey=True)
    for n in range(N):
        for axes, rows in zip(grid[n], (x, samples), strict=True):
            for p in range(P):
                axes.plot(rows[n, :, p], color=COLORS[p], linewidth=1, label=column_name(p, names))
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=TEXT - 2)
            axes.ticklabel_format(useOffset=False)
        if back is not None:
            grid[n, 0].plot(np.asarray(back, np.float64)[n, :, :P], color=INK, linewidth=0.6)
        grid[n, 0].set_ylabel(f"row {n}", fontsize=TEXT - 1)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=TEXT - 1)
    if P > 1:
        legend_below(figure)
    ratio = np.nanstd(samples, (0, 1)) / np.maximum(np.nanstd(x, (0, 1)), 1e-12)
    parts = ", ".join(f"{column_name(p, names)} {ratio[p]:.2f}" for p in range(P))
    return describe(figure, f"The sd of samples over that of data: {parts}.")


def state_probabilities(
    x: ArrayLike, probability: ArrayLike, names: Sequence[str] | None = None
) -> Figure:
    """Sequences (N, T, P) over the stacked probabilities of the states.

    Args:
        x: (N, T, P), NaN where missing; the first column is drawn.
        probability: probabilities of S states (N, T, S).
        names: names of the columns.
    """
    x, probability = np.asarray(x, np.float64), np.asarray(probability, np.float64)
    N, T, S = probability.shape
    figure = Figure(figsize=(WIDTH, 0.9 + 1.4 * N), layout="constrained")
    left_out = some_of(1, x.shape[2], "columns")
    title_above(
        figure,
        f"Hidden states: {column_name(0, names)}{left_out} over the probability of each state",
    )
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
        if len(COLORS) < S:  # colors repeat
            for s in np.unique(probability[n].argmax(1)):
                t = float(np.median(np.flatnonzero(probability[n].argmax(1) == s)))
                write_at(axes, (t, float(np.nanmean(x[n, :, 0]))), str(s))
    axes.set_xlabel("step", fontsize=TEXT - 1)
    handles = behind.collections
    figure.legend(
        handles,
        [f"state {s}" for s in range(S)],
        loc="outside lower center",
        ncols=min(S, 5),
        frameon=False,
        fontsize=TEXT - 1,
    )
    likely = probability.argmax(2)
    changes = (likely[:, 1:] != likely[:, :-1]).mean()
    shares = ", ".join(f"{s}: {m:.0%}" for s, m in enumerate(probability.mean((0, 1))))
    return describe(
        figure,
        f"Time in each state {shares}; the likeliest state changes at {changes:.0%} of the steps, "
        f"its probability is {probability.max(2).mean():.2f} on average.",
    )


def _site(view: RunView) -> str | None:
    """The one observed site if it has sequences (N, T, P)."""
    sites = [n for n, v in view.values.items() if v.dim() == 3 and v.shape[1] > 1]
    return sites[0] if len(sites) == len(view.values) == 1 else None


def _observed(view: RunView, name: str) -> torch.Tensor:
    """Mask of observed values; NaN in the batch marks missing ones."""
    x, value = view.batch[0], view.values[name]
    return ~x.isnan().reshape(value.shape) if x.numel() == value.numel() else value.isfinite()
