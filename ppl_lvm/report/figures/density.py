"""Density of a model of two columns over the plane."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.core.types import Array
from ppl_lvm.posterior.evidence import log_evidence
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.report.figures.style import column_name, describe, note, plot, thin
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

CELLS = 120  # on each side of the grid
MARGIN = 0.15  # beyond the data, relative to their width


def on_grid(pair: ModelGuidePair, x: Tensor) -> tuple[Array, Array, Array]:
    """Axes (G,), (G,) and exact p(x) (G, G) of a pair without sampled latents; x: data (N, 2)."""
    low, high = (end.values.double().cpu().numpy() for end in (x.min(0), x.max(0)))
    edge = MARGIN * (high - low)
    axes = [np.linspace(a, b, CELLS) for a, b in zip(low - edge, high + edge, strict=True)]
    rows = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    grid = torch.as_tensor(rows, dtype=torch.get_default_dtype(), device=x.device)
    log_p = log_evidence(pair, grid, num_particles=1).per_row
    return axes[0], axes[1], log_p.exp().reshape(CELLS, CELLS).cpu().numpy()


@run_figure(
    "density",
    caption="Dark where the model expects data; data on white and dark empty regions are faults.",
    alt_text="The model's density over the plane of its two columns, with the data.",
)
def picture(view: RunView) -> Figure | None:
    """Shades of p(x), the data, and the probability of the frame.

    Applies to complete rows of two columns and guides without sampled latents.
    """
    x = view.batch[0]
    plane = x.dim() == 2 and x.shape[1] == 2 and x.is_floating_point() and not x.isnan().any()
    is_sampled = bool(view.shared) or view.codes.keys() != view.summed
    if len(view.batch) > 1 or view.rows is None or not plane or is_sampled:
        return None
    data, names = np.asarray(view.x, np.float64), view.data.columns
    across, up, density = on_grid(view.pair, x)
    figure, axes = plot("The model's density, and the data", height=4.2)
    axes.set_xlabel(column_name(0, names or None))
    axes.set_ylabel(column_name(1, names or None))
    axes.pcolormesh(across, up, density.T, cmap="Blues", shading="auto", rasterized=True)
    rows = thin(len(data))
    axes.scatter(data[rows, 0], data[rows, 1], s=4, color="black", alpha=0.4, linewidths=0)
    mass = density.sum() * (across[1] - across[0]) * (up[1] - up[0])
    text = f"the frame contains {mass:.0%} of the probability"
    note(axes, text)
    return describe(figure, text.capitalize() + ".")
