"""Pictures of a generator and its discriminator: the training, and draws beside data."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.report.figures.fit import save
from ppl_lvm.report.figures.style import COLORS, GRAY, legend_below, limit_to, plot, thin, view

if TYPE_CHECKING:
    from ppl_lvm.runs.adversarial import Adversaries

ALIKE = 0.0  # of the Jensen-Shannon divergence, where nothing tells the two apart


def draw(found: "Adversaries", x: Tensor, directory: Path) -> None:
    """Write the pictures of `found` beside rows `x` (N, P) into `directory`."""
    save(training(found), directory / "training.png")
    save(draws(found, x), directory / "samples.png")


def training(found: "Adversaries") -> Figure:
    """What the discriminator makes of the draws, step by step."""
    value = np.asarray(found.history["jensen_shannon"])
    window = max(1, len(value) // 50)
    figure, axes = plot("Training: how far the discriminator tells draws from data")
    axes.plot(np.arange(1, len(value) + 1), value, color=GRAY, linewidth=0.6, label="each step")
    mean = np.convolve(value, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(window, len(value) + 1), mean, color=COLORS[0], label="running mean")
    axes.axhline(ALIKE, color=COLORS[4], linewidth=1, label="no better than chance")
    axes.set_xlabel("step")
    axes.set_ylabel("Jensen-Shannon, lower bound, nats")
    legend_below(figure)
    return figure


def draws(found: "Adversaries", x: Tensor) -> Figure:
    """As many draws as data, in the plane of two columns or of the data's two principal axes."""
    drawn, data = found.sample(len(x)).cpu().numpy(), x.cpu().numpy()
    if data.shape[1] == 1:
        figure, axes = plot("Draws of the generator beside data")
        edges = np.histogram_bin_edges(np.concatenate([data, drawn]), "auto").tolist()
        axes.hist(data[:, 0], edges, density=True, color=GRAY, label="data")
        axes.hist(drawn[:, 0], edges, density=True, histtype="step", color=COLORS[0], label="draws")
    else:
        figure, axes = plot("Draws of the generator beside data", height=4.6)
        center, W, labels = view(data, None, None)
        shown = thin(len(data))
        for rows, color, label in ((data, GRAY, "data"), (drawn, COLORS[0], "draws")):
            plane = (rows[shown] - center) @ W
            axes.plot(*plane.T, ".", color=color, markersize=3, alpha=0.7, label=label)
        limit_to(axes, (data - center) @ W)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    legend_below(figure)
    return figure
