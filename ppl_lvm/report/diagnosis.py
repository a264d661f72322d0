"""Pictures of a diagnosis: k̂ per datum, calibration, bounds with their sandwich, checks, units.

Each picture comes with a sentence on how to read it and a text that says what it shows, for
those who cannot see it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppl_lvm.diagnostics.calibration import Calibration, ecdf_band
from ppl_lvm.diagnostics.khat import ParetoK
from ppl_lvm.diagnostics.latents import LatentUse
from ppl_lvm.diagnostics.predictive import Check
from ppl_lvm.diagnostics.tightness import Tightness
from ppl_lvm.report.canvas import COLOURS, GREY, INK, legend_below, plot


@dataclass(frozen=True)
class Picture:
    """`figure` with its `title`, how to read it (`reading`) and what it shows (`text`)."""

    title: str
    figure: Figure
    reading: str
    text: str


def pictures(details: dict[str, Any]) -> list[Picture]:
    """Of what a `Diagnosis` was computed from: those that there are data for."""
    makers: dict[str, Callable[[Any], Picture]] = {
        "tightness": bounds,
        "khat": khat,
        "calibration": calibration,
        "predictive": checks,
        "latents": units,
    }
    return [make(details[name]) for name, make in makers.items() if name in details]


def bounds(found: Tightness) -> Picture:
    figure, axes = plot("Lower bounds on log p(x)")
    K = sorted(found.bounds)
    values = [found.bounds[k].value for k in K]
    axes.plot(K, values, marker="o", color=COLOURS[0], label="IWAE-K (K = 1: ELBO)")
    axes.set_xscale("log")
    axes.set_xlabel("particles K")
    axes.set_ylabel("nats per datum")
    text = ", ".join(f"IWAE-{k} {v:.3f}" for k, v in zip(K, values, strict=True))
    if found.annealed is not None:
        axes.axhline(found.annealed.value, color=COLOURS[4], label="annealed importance sampling")
        text += f", annealed importance sampling {found.annealed.value:.3f}"
    if found.exact is not None:
        exact = float(found.exact.mean())
        axes.axhline(exact, color=INK, linestyle="--", label="exact")
        text += f", exact {exact:.3f}"
    legend_below(figure)
    return Picture(
        "Bounds",
        figure,
        "The sooner the curve reaches the line, the better q fits the posterior.",
        text + " nats per datum.",
    )


def khat(found: ParetoK) -> Picture:
    figure, axes = plot("Pareto k̂ of each datum")
    k = np.sort(np.where(np.isfinite(found.k), found.k, -0.5))
    axes.plot(np.arange(len(k)), k, ".", color=COLOURS[0], markersize=4)
    for level in (0.5, 0.7):
        axes.axhline(level, color=GREY if level == 0.5 else COLOURS[4], linewidth=1)
    axes.set_xlabel("datum, sorted")
    axes.set_ylabel("k̂")
    return Picture(
        "k̂ per datum",
        figure,
        "Above the upper line (0.7) importance weights, and q itself, cannot be trusted for that "
        "datum.",
        f"{found.share_bad:.1%} of {len(k)} data above 0.7, median {np.median(k):.2f}.",
    )


def calibration(found: Calibration) -> Picture:
    figure, axes = plot("Ranks of the truth among draws of q, less uniform")
    n = len(next(iter(found.ranks.values())))
    z, lower, upper = ecdf_band(n, found.num_draws)
    axes.fill_between(z, lower - z, upper - z, color=GREY, alpha=0.5, label="95% band")
    order = sorted(found.ranks, key=lambda name: found.p_values[name])[:5]
    for colour, name in zip(COLOURS, order, strict=False):
        ranks = np.sort(found.ranks[name])
        ecdf = np.searchsorted(ranks, np.arange(1, found.num_draws + 1), side="left") / n
        axes.plot(z, ecdf - z, color=colour, label=name, linewidth=1)
    axes.set_xlabel("rank / (L + 1)")
    axes.set_ylabel("ECDF − uniform")
    legend_below(figure)
    return Picture(
        "Simulation-based calibration",
        figure,
        "Curves inside the band: calibrated. First above, then below: q too narrow; all on one "
        "side: shifted.",
        f"Smallest p-value {found.p_value:.2g} ({order[0]}) over {len(found.ranks)} quantities.",
    )


def checks(found: Check) -> Picture:
    figure, axes = plot("Test quantities: data against replicated data")
    names = list(found.observed)
    for i, name in enumerate(names):
        t = found.replicated[name]
        centre, spread = t.mean(), t.std() + 1e-12
        low, high = np.quantile((t - centre) / spread, [0.025, 0.975])
        axes.plot([low, high], [i, i], color=GREY, linewidth=6, solid_capstyle="butt")
        shift = np.clip((found.observed[name] - centre) / spread, -6, 6)
        axes.plot(shift, i, "o", color=COLOURS[4])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("sd of the replicates (cut at ± 6)")
    shown = ", ".join(f"{n} p = {p:.3f}" for n, p in found.p_values.items())
    return Picture(
        "Predictive checks",
        figure,
        "A dot is the data, a bar 95% of replicated data sets: dots outside bars are misfits.",
        shown + ".",
    )


def units(found: LatentUse) -> Picture:
    figure, axes = plot("Activity of the latent units")
    order = np.argsort(-found.active.numpy())
    axes.bar(range(len(order)), np.maximum(found.active.numpy()[order], 1e-6), color=COLOURS[2])
    axes.axhline(0.01, color=COLOURS[4], linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("unit, sorted")
    axes.set_ylabel("Var_x(E_q[z | x])")
    active = int((found.active > 0.01).sum())
    return Picture(
        "Active units",
        figure,
        "Bars below the line (0.01) are units that say nothing about the data.",
        f"{active} of {len(order)} units are active.",
    )
