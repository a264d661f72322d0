"""Figures of conditional models: completions, predictions, global latents.

A conditional model observes some columns of its arguments and conditions on the others. Samples of
y ignore the observed y: codes come from their prior. For guides with global latents (such as
regression coefficients), all latents come from the guide.
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
    describe,
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
FEW = 40  # rows with error bars
MAX_VALUES, MAX_SITES = 12, 6  # values per site, and sites, in the figure of the posterior
INTERVAL = 0.9


@run_figure(
    "filled_in",
    caption="Draws should differ where the observed part leaves a choice, and agree elsewhere.",
    alt_text="Observed parts, the truth, completions sampled from the model, and their mean.",
)
def filled_in(view: RunView) -> Figure | None:
    """Truth, samples and mean of the completed part of pictures."""
    name = _answer(view)
    if name is None or not _ends_pictures(view, name):
        return None
    rows, shape = view.repeated(min(SHOWN, len(view.batch[0]))), view.data.image_shape
    assert shape is not None
    _, means = _replicated(view, name, rows)
    return completed_pictures(
        torch.cat(rows, 1).cpu().numpy(), means[:SHOWN_DRAWS], means.mean(0), shape
    )


@run_figure(
    "predictions",
    caption="On the line, predictions are right on average. Too few or too many observations in "
    "the intervals mean that the noise is estimated too small or too large.",
    alt_text="Observed values against the model's predictions.",
)
def predictions(view: RunView) -> Figure | None:
    """Observed against predicted values, for models of a part of their columns."""
    name = _answer(view)
    if name is None or _ends_pictures(view, name):
        return None
    samples, means = _replicated(view, name, view.batch)
    y = view.values[name].cpu().numpy()
    if np.isin(y, (0, 1)).all():
        return reliability(y, means.mean(0))
    return predicted_against_observed(y, samples, name)


@run_figure(
    "posterior",
    caption="If an interval contains 0, the data do not determine the sign.",
    alt_text="Means and intervals of the global latents.",
)
def posterior(view: RunView) -> Figure | None:
    """Intervals of the global latents, and of the local latents of few rows."""
    shared = view.shared
    if not shared:
        return None
    with torch.no_grad(), preserve_rng(), view.pair.scope(), poutine.block():
        torch.manual_seed(0)
        draws = [predict.draw_guide(view.pair, view.batch)[0] for _ in range(2 * DRAWS)]
        # Stacked without gradients: the value of a point estimate is the parameter itself.
        table = {n: torch.stack([d[n] for d in draws]) for n in draws[0]}
    few = {n: v for n, v in table.items() if v[0].numel() <= MAX_VALUES and v.is_floating_point()}
    if not few:
        return None
    order = sorted(few, key=lambda n: (n not in shared, few[n][0].numel()))[:MAX_SITES]
    left = sorted(table.keys() - set(order))
    return intervals({n: few[n].cpu().numpy() for n in order}, left)


def completed_pictures(
    x: ArrayLike, draws: ArrayLike, mean: ArrayLike, shape: tuple[int, int]
) -> Figure:
    """Pictures with completed last pixels.

    Args:
        x: pictures (N, H W).
        draws: samples of their last P pixels (S, N, P).
        mean: mean of the last pixels (N, P).
        shape: (H, W).
    """
    x, draws, mean = (np.asarray(t, np.float64) for t in (x, draws, mean))
    N, P = mean.shape
    gray = np.full((N, P), (x.min() + x.max()) / 2)
    ends = [x[:, -P:], gray, *draws, mean]
    rows = np.stack([np.concatenate([x[:, :-P], end], 1) for end in ends])  # (S + 3, N, H W)
    names = ["data", "observed", *(f"draw {s + 1}" for s in range(len(draws))), "mean"]
    title = "Completions: observed part, samples of the rest, and their mean"
    return picture_grid(title, rows.reshape(-1, *shape), len(rows), N, names)


def predicted_against_observed(y: ArrayLike, draws: ArrayLike, name: str = "y") -> Figure:
    """Mean of samples against data, with intervals for few rows.

    Args:
        y: (N,) or (N, P). draws: (S, N) or (S, N, P).
    """
    y, draws = np.asarray(y, np.float64), np.asarray(draws, np.float64)
    y, draws = y.reshape(len(y), -1), draws.reshape(len(draws), len(y), -1)
    edge = (1 - INTERVAL) / 2
    low, high = np.nanquantile(draws, [edge, 1 - edge], axis=0)  # (N, P)
    mean = draws.mean(0)
    figure, axes = plot(f"Predictions of {name}: exact on the line")
    axes.axline((float(y.mean()), float(y.mean())), slope=1, color=GRAY, linewidth=1.2)
    rows = thin(y.size)
    if y.size <= FEW:
        length = np.stack([mean - low, high - mean]).reshape(2, -1)
        axes.errorbar(y.ravel(), mean.ravel(), length, fmt="o", color=COLORS[0], elinewidth=0.8)
    else:
        axes.scatter(
            y.ravel()[rows], mean.ravel()[rows], s=8, color=COLORS[0], linewidths=0, alpha=0.7
        )
    coverage = ((low <= y) & (y <= high)).mean()
    text = f"the central {INTERVAL:.0%} intervals contain {coverage:.0%} of the data"
    note(axes, text)
    describe(figure, text.capitalize() + ".")
    axes.set_xlabel("data")
    axes.set_ylabel("mean of the model")
    return figure


def reliability(y: ArrayLike, probability: ArrayLike) -> Figure:
    """Reliability diagram: frequency of ones against predicted probability.

    Args:
        y: zeros and ones, of any shape. probability: predicted probability of a one, same shape.
    """
    y, p = np.asarray(y, np.float64).ravel(), np.asarray(probability, np.float64).ravel()
    number = np.minimum((p * 10).astype(int), 9)
    bins = [number == b for b in range(10) if (number == b).any()]
    probability_of_bin, share = (np.array([t[in_bin].mean() for in_bin in bins]) for t in (p, y))
    error = np.sqrt(
        probability_of_bin * (1 - probability_of_bin) / [in_bin.sum() for in_bin in bins]
    )
    figure, axes = plot("Predictions: frequency of ones against their probability")
    axes.axline((0, 0), slope=1, color=GRAY, linewidth=1.2)
    axes.errorbar(probability_of_bin, share, 2 * error, fmt="o", color=COLORS[0], elinewidth=0.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of ones (± 2 standard errors)")
    off = np.abs(share - probability_of_bin) > 2 * error
    return describe(figure, f"{off.sum()} of {len(bins)} bins are off the line by 2 errors.")


def intervals(draws: dict[str, Array], left_out: list[str]) -> Figure:
    """Means with 50% and 90% intervals of each site.

    Args:
        draws: site -> samples (S, ...).
        left_out: sites with too many values to draw.
    """
    sizes = [d[0].size for d in draws.values()]
    height = 1.0 + 0.5 * len(draws) + 0.22 * sum(sizes)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    title_above(figure, "Posterior: mean, 50% and 90% intervals of the guide")
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
        grid[-1].set_xlabel(f"not shown (too large): {', '.join(left_out)}", fontsize=TEXT - 2)
    ends = [np.quantile(v.reshape(len(v), -1), [0.05, 0.95], 0) for v in draws.values()]
    signs = sum(int(((low > 0) | (high < 0)).sum()) for low, high in ends)
    return describe(figure, f"{signs} of {sum(sizes)} values have a 90% interval without 0.")


def _entry(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _answer(view: RunView) -> str | None:
    """The one observed site of a conditional model, of shape (N,) or (N, P)."""
    if len(view.values) != 1 or view.rows is not None or view.classes:
        return None
    ((name, y),) = view.values.items()
    latent = bool(view.codes) or bool(view.shared)
    return name if latent and y.dim() in (1, 2) and len(y) == len(view.batch[0]) else None


def _ends_pictures(view: RunView, name: str) -> bool:
    """True if the concatenated tensors are pictures and y is their last pixels."""
    y, shape = view.values[name], view.data.image_shape
    if shape is None or y.dim() != 2 or any(t.dim() != 2 for t in view.batch):
        return False
    rows = torch.cat(view.batch, 1)
    last = rows[:, -y.shape[1] :].to(y)
    return rows.shape[1] == math.prod(shape) and torch.equal(last, y)


def _replicated(view: RunView, name: str, batch: tuple[Tensor, ...]) -> tuple[Array, Array]:
    """Samples of an observed site, and its means at the sampled latents: (S, N, …)."""
    pair = view.pair
    values, means = [], []
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        torch.manual_seed(0)
        for _ in range(DRAWS):
            fixed = predict.draw_guide(pair, batch)[0] if view.shared else {}
            if view.summed:
                fixed |= predict.draw_summed_globals(pair, batch, fixed)
            site = predict.run_model(pair, fixed, batch).nodes[name]
            values.append(site["value"])
            mean = predict.expectation(site["fn"])
            if mean.dim() > site["value"].dim():  # of categories: probabilities
                mean = (mean * torch.arange(mean.shape[-1], device=mean.device)).sum(-1)
            means.append(mean)
        return torch.stack(values).cpu().numpy(), torch.stack(means).cpu().numpy()
