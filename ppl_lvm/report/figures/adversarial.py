"""Figures of a generator and its discriminator."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.report.figures.arrays import save
from ppl_lvm.report.figures.style import COLORS, GRAY, legend_below, limit_to, plot, thin, view

if TYPE_CHECKING:
    from ppl_lvm.runs.adversarial import Adversaries

CHANCE_LEVEL = 0.0  # Jensen-Shannon divergence of equal distributions


def draw(adversaries: "Adversaries", x: Tensor, directory: Path) -> None:
    """Save the figures of `adversaries` with rows `x` (N, P) in `directory`."""
    save(training(adversaries), directory / "training.png")
    save(draws(adversaries, x), directory / "samples.png")


def training(adversaries: "Adversaries") -> Figure:
    """Lower bound on the Jensen-Shannon divergence at every step."""
    value = np.asarray(adversaries.history["jensen_shannon"])
    window = max(1, len(value) // 50)
    figure, axes = plot("Training: divergence estimated by the discriminator")
    axes.plot(np.arange(1, len(value) + 1), value, color=GRAY, linewidth=0.6, label="each step")
    mean = np.convolve(value, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(window, len(value) + 1), mean, color=COLORS[0], label="running mean")
    axes.axhline(CHANCE_LEVEL, color=COLORS[4], linewidth=1, label="chance level")
    axes.set_xlabel("step")
    axes.set_ylabel("Jensen-Shannon, lower bound, nats")
    legend_below(figure)
    return figure


def draws(adversaries: "Adversaries", x: Tensor) -> Figure:
    """Samples and data in the plane of two columns or of the two principal axes."""
    samples, data = adversaries.sample(len(x)).cpu().numpy(), x.cpu().numpy()
    if data.shape[1] == 1:
        figure, axes = plot("Samples of the generator and data")
        edges = np.histogram_bin_edges(np.concatenate([data, samples]), "auto").tolist()
        axes.hist(data[:, 0], edges, density=True, color=GRAY, label="data")
        axes.hist(
            samples[:, 0], edges, density=True, histtype="step", color=COLORS[0], label="samples"
        )
    else:
        figure, axes = plot("Samples of the generator and data", height=4.6)
        center, W, labels = view(data, None, None)
        shown = thin(len(data))
        for rows, color, label in ((data, GRAY, "data"), (samples, COLORS[0], "samples")):
            plane = (rows[shown] - center) @ W
            axes.plot(*plane.T, ".", color=color, markersize=3, alpha=0.7, label=label)
        limit_to(axes, (data - center) @ W)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    legend_below(figure)
    return figure
