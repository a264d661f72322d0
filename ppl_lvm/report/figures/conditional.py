"""Pictures of what a model says of y, given the rest: answers filled in, and shared latents.

A conditional model observes some of the columns it is called with and takes the others as given.
Its draws of y are made as for rows whose y nobody has seen: codes from their prior. Where the
guide has latents that all rows share (a regression's coefficients), all latents are the guide's.
"""

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from pyro import poutine
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Array
from ppl_lvm.posterior import predict
from ppl_lvm.report.figures.style import (
    COLORS,
    GRAY,
    TEXT,
    WIDTH,
    note,
    picture_grid,
    plot,
    thin,
    title_above,
)
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

DRAWS = 100
SHOWN, SHOWN_DRAWS = 8, 4
FEW = 40  # rows with a bar each
MOST_NUMBERS, MOST_SITES = 12, 6  # of a site, and sites, in the picture of the posterior
INTERVAL = 0.9


@run_figure(
    "filled_in",
    caption="Draws should differ where the observed part leaves a choice, and agree elsewhere.",
    alt_text="Observed parts, the truth, completions sampled from the model, and their mean.",
)
def filled_in(subject: RunView) -> Figure | None:
    """The missing part of pictures: the truth, draws and their mean; None for other models."""
    name = _answer(subject)
    if name is None or not _ends_pictures(subject, name):
        return None
    rows, shape = subject.repeated(min(SHOWN, len(subject.batch[0]))), subject.data.image_shape
    assert shape is not None
    _, means = _replicated(subject, name, rows)
    return halves(torch.cat(rows, 1).cpu().numpy(), means[:SHOWN_DRAWS], means.mean(0), shape)


@run_figure(
    "predictions",
    caption="On the line, predictions are right on average. Too few or too many observations in "
    "the intervals mean that the noise is estimated too small or too large.",
    alt_text="Observed values against the model's predictions.",
)
def predictions(subject: RunView) -> Figure | None:
    """What is observed beside what is predicted; None for models of all their columns."""
    name = _answer(subject)
    if name is None or _ends_pictures(subject, name):
        return None
    drawn, means = _replicated(subject, name, subject.batch)
    y = subject.values[name].cpu().numpy()
    if np.isin(y, (0, 1)).all():
        return reliability(y, means.mean(0))
    return beside(y, drawn, name)


@run_figure(
    "posterior",
    caption="If an interval contains 0, the data do not determine the sign.",
    alt_text="Means and intervals of the global latents.",
)
def posterior(subject: RunView) -> Figure | None:
    """Intervals of the latents that all rows share; None where there is none to be shown.

    Of latents of a row each, those of few rows are shown, too.
    """
    shared = subject.shared
    if not shared:
        return None
    with torch.no_grad(), preserve_rng(), subject.pair.scope(), poutine.block():
        torch.manual_seed(0)
        draws = [predict.draw_guide(subject.pair, subject.batch)[0] for _ in range(2 * DRAWS)]
        # Stacked here: the value of a point estimate is the parameter, gradient and all.
        table = {n: torch.stack([d[n] for d in draws]) for n in draws[0]}
    few = {n: v for n, v in table.items() if v[0].numel() <= MOST_NUMBERS and v.is_floating_point()}
    if not few:
        return None
    order = sorted(few, key=lambda n: (n not in shared, few[n][0].numel()))[:MOST_SITES]
    left = sorted(table.keys() - set(order))
    return intervals({n: few[n].cpu().numpy() for n in order}, left)


def halves(x: ArrayLike, draws: ArrayLike, mean: ArrayLike, shape: tuple[int, int]) -> Figure:
    """Pictures whose last pixels are filled in.

    Args:
        x: whole pictures (N, H W). draws: of their last P pixels (S, N, P). mean: (N, P).
        shape: (H, W).
    """
    x, draws, mean = (np.asarray(t, np.float64) for t in (x, draws, mean))
    N, P = mean.shape
    gray = np.full((N, P), (x.min() + x.max()) / 2)
    ends = [x[:, -P:], gray, *draws, mean]
    rows = np.stack([np.concatenate([x[:, :-P], end], 1) for end in ends])  # (S + 3, N, H W)
    names = ["datum", "given", *(f"draw {s + 1}" for s in range(len(draws))), "mean"]
    title = "Filled in: what is given, several ways to go on, and the mean of many"
    return picture_grid(title, rows.reshape(-1, *shape), len(rows), N, names)


def beside(y: ArrayLike, draws: ArrayLike, name: str = "y") -> Figure:
    """Data against the mean of the model's draws of them, with intervals where rows are few.

    Args:
        y: (N,) or (N, P). draws: (S, N) or (S, N, P).
    """
    y, draws = np.asarray(y, np.float64), np.asarray(draws, np.float64)
    y, draws = y.reshape(len(y), -1), draws.reshape(len(draws), len(y), -1)
    edge = (1 - INTERVAL) / 2
    low, high = np.nanquantile(draws, [edge, 1 - edge], axis=0)  # (N, P)
    mean = draws.mean(0)
    figure, axes = plot(f"Predictions of {name}: on the line, the mean of the model is the datum")
    axes.axline((float(y.mean()), float(y.mean())), slope=1, color=GRAY, linewidth=1.2)
    kept = thin(y.size)
    if y.size <= FEW:
        length = np.stack([mean - low, high - mean]).reshape(2, -1)
        axes.errorbar(y.ravel(), mean.ravel(), length, fmt="o", color=COLORS[0], elinewidth=0.8)
    else:
        axes.scatter(
            y.ravel()[kept], mean.ravel()[kept], s=8, color=COLORS[0], linewidths=0, alpha=0.7
        )
    inside = ((low <= y) & (y <= high)).mean()
    note(axes, f"the middle {INTERVAL:.0%} of the model's draws hold {inside:.0%} of the data")
    axes.set_xlabel("datum")
    axes.set_ylabel("mean of the model")
    return figure


def reliability(y: ArrayLike, probability: ArrayLike) -> Figure:
    """Of the values said to be 1 with probability p: how many are?

    Args:
        y: zeros and ones, of any shape. probability: of one, the same shape.
    """
    y, p = np.asarray(y, np.float64).ravel(), np.asarray(probability, np.float64).ravel()
    number = np.minimum((p * 10).astype(int), 9)
    bins = [number == b for b in range(10) if (number == b).any()]
    at, share = (np.array([t[own].mean() for own in bins]) for t in (p, y))
    error = np.sqrt(at * (1 - at) / [own.sum() for own in bins])
    figure, axes = plot("Predictions: of values with probability p of a 1, how many are 1?")
    axes.axline((0, 0), slope=1, color=GRAY, linewidth=1.2)
    axes.errorbar(at, share, 2 * error, fmt="o", color=COLORS[0], elinewidth=0.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("probability by the model")
    axes.set_ylabel("share of ones (± 2 standard errors)")
    return figure


def intervals(draws: dict[str, Array], left_out: list[str]) -> Figure:
    """Means and the middle half and 90% of the numbers of each site.

    Args:
        draws: site -> (S, ...). left_out: sites with too many numbers to be drawn.
    """
    sizes = [d[0].size for d in draws.values()]
    height = 1.0 + 0.5 * len(draws) + 0.22 * sum(sizes)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    title_above(figure, "Posterior: mean, middle half and middle 90% of the guide's draws")
    heights = [size + 1 for size in sizes]
    grid = figure.subplots(len(draws), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, values) in zip(grid, draws.items(), strict=True):
        flat = values.reshape(len(values), -1)
        at = np.arange(flat.shape[1])
        for (low, high), width in (((0.05, 0.95), 1.2), ((0.25, 0.75), 3.5)):
            axes.hlines(at, *np.quantile(flat, [low, high], 0), color=COLORS[0], linewidth=width)
        axes.plot(flat.mean(0), at, "o", color=COLORS[4], markersize=4)
        index = list(np.ndindex(*values.shape[1:]))
        axes.set_yticks(at, [_entry(name, i) for i in index], fontsize=TEXT - 2)
        axes.set_ylim(flat.shape[1] - 0.4, -0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TEXT - 2)
    if left_out:
        grid[-1].set_xlabel(f"not shown, being larger: {', '.join(left_out)}", fontsize=TEXT - 2)
    return figure


def _entry(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _answer(subject: RunView) -> str | None:
    """The one observed site of a conditional model: numbers, one or a row of them a datum."""
    if len(subject.values) != 1 or subject.rows is not None or subject.classes:
        return None
    ((name, y),) = subject.values.items()
    latent = bool(subject.codes) or bool(subject.shared)
    return name if latent and y.dim() in (1, 2) and len(y) == len(subject.batch[0]) else None


def _ends_pictures(subject: RunView, name: str) -> bool:
    """Whether the rows, all tensors side by side, are pictures, and y their last pixels."""
    y, shape = subject.values[name], subject.data.image_shape
    if shape is None or y.dim() != 2 or any(t.dim() != 2 for t in subject.batch):
        return False
    whole = torch.cat(subject.batch, 1)
    last = whole[:, -y.shape[1] :].to(y)
    return whole.shape[1] == math.prod(shape) and torch.equal(last, y)


def _replicated(subject: RunView, name: str, batch: tuple[Tensor, ...]) -> tuple[Array, Array]:
    """Draws of an observed site, and its means at the latents they were drawn with: (S, N, …)."""
    pair = subject.pair
    values, means = [], []
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        torch.manual_seed(0)
        for _ in range(DRAWS):
            fixed = predict.draw_guide(pair, batch)[0] if subject.shared else {}
            site = predict.run_model(pair, fixed, batch).nodes[name]
            values.append(site["value"])
            mean = predict.expectation(site["fn"])
            if mean.dim() > site["value"].dim():  # of categories: probabilities
                mean = (mean * torch.arange(mean.shape[-1], device=mean.device)).sum(-1)
            means.append(mean)
        return torch.stack(values).cpu().numpy(), torch.stack(means).cpu().numpy()
