"""Figures of a diagnosis, by slug of the diagnostic.

Each picture has a caption on how to read it and an alternative text.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppl_lvm.diagnostics.bound_tightness import Sandwich, Tightness
from ppl_lvm.diagnostics.calibration import Calibration, ecdf_band
from ppl_lvm.diagnostics.latent_usage import LatentUse
from ppl_lvm.diagnostics.leave_one_out import LeaveOneOutCheck
from ppl_lvm.diagnostics.pareto_k import ParetoK
from ppl_lvm.diagnostics.predictive_checks import PredictiveCheck, kolmogorov_smirnov_uniformity
from ppl_lvm.report.figures.style import COLORS, GRAY, INK, legend_below, plot
from ppl_lvm.report.run_figure import Picture

FIGURES: dict[str, Callable[[Any], Picture]] = {}


def diagnosis_figure(slug: str) -> Callable[[Callable[[Any], Picture]], Callable[[Any], Picture]]:
    """Declare a function to draw the result of the diagnostic `slug`."""

    def declare(draw: Callable[[Any], Picture]) -> Callable[[Any], Picture]:
        FIGURES[slug] = draw
        return draw

    return declare


def pictures(details: dict[str, Any]) -> list[Picture]:
    """Pictures of the results that a `Diagnosis` was computed from."""
    drawn = [draw(details[slug]) for slug, draw in FIGURES.items() if slug in details]
    if "predictive" in details and "loo" not in details and details["predictive"].pit:
        drawn.append(pit(details["predictive"]))
    return drawn


@diagnosis_figure("tightness")
def bounds(result: Tightness) -> Picture:
    figure, axes = plot("Lower bounds on log p(x)")
    K = sorted(result.bounds)
    values = [result.bounds[k].value for k in K]
    axes.plot(K, values, marker="o", color=COLORS[0], label="IWAE-K (K = 1: ELBO)")
    axes.set_xscale("log")
    axes.set_xlabel("particles K")
    axes.set_ylabel("nats per row")
    text = ", ".join(f"IWAE-{k} {v:.3f}" for k, v in zip(K, values, strict=True))
    if result.annealed is not None:
        axes.axhline(result.annealed.value, color=COLORS[4], label="annealed importance sampling")
        text += f", annealed importance sampling {result.annealed.value:.3f}"
    if result.exact is not None:
        exact = float(result.exact.mean())
        axes.axhline(exact, color=INK, linestyle="--", label="exact")
        text += f", exact {exact:.3f}"
    legend_below(figure)
    return Picture(
        "Bounds",
        figure,
        "The faster the curve reaches the line, the better q fits the posterior.",
        text + " nats per row.",
    )


@diagnosis_figure("sandwich")
def sandwich(result: Sandwich) -> Picture:
    figure, axes = plot("Sandwich: log p(x) of simulated data lies between two bounds")
    lower, upper = (e.per_row.double().numpy() for e in (result.lower, result.upper))
    order = np.argsort(lower)
    position = np.arange(len(order))
    axes.plot(position, upper[order], "v", color=COLORS[4], markersize=4, label="upper bound")
    axes.plot(position, lower[order], "^", color=COLORS[0], markersize=4, label="lower bound (AIS)")
    axes.set_xlabel("simulated row, sorted")
    axes.set_ylabel("nats")
    legend_below(figure)
    return Picture(
        "Sandwich",
        figure,
        "Where the two marks meet, log p(x) is known; a gap is the uncertainty of annealing.",
        f"Upper less lower bound {result.gap:.3f} ± {result.error:.3f} nats on average over "
        f"{len(order)} simulated rows, at most {float(np.max(upper - lower)):.3f}.",
    )


@diagnosis_figure("khat")
def khat(result: ParetoK) -> Picture:
    if result.joint:
        return _joint_khat(result)
    figure, axes = plot("Pareto k̂ of each row")
    k = np.sort(np.where(np.isfinite(result.k), result.k, -0.5))
    axes.plot(np.arange(len(k)), k, ".", color=COLORS[0], markersize=4)
    for level in (0.5, 0.7):
        axes.axhline(level, color=GRAY if level == 0.5 else COLORS[4], linewidth=1)
    axes.set_xlabel("row, sorted")
    axes.set_ylabel("k̂")
    return Picture(
        "k̂ per row",
        figure,
        "Above the upper line (0.7), importance weights and q are unreliable for that row.",
        f"{result.share_bad:.1%} of {len(k)} rows above 0.7, median {np.median(k):.2f}.",
    )


def _joint_khat(result: ParetoK) -> Picture:
    """Posterior sd under q and after importance correction, for joint weights."""
    figure, axes = plot("Posterior sd: q and importance-corrected, joint weights")
    for color, (name, m) in zip(COLORS, result.moments.items(), strict=False):
        axes.plot(m.q_sd.ravel(), m.sd.ravel(), "o", color=color, markersize=4, label=name)
    ends = [a for m in result.moments.values() for a in (m.q_sd.min(), m.q_sd.max())] or [1.0]
    low, high = 0.8 * max(min(ends), 1e-9), 1.25 * max(ends)
    axes.plot([low, high], [low, high], color=GRAY, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="sd under q", ylabel="importance-corrected sd")
    if result.moments:
        legend_below(figure)
    return Picture(
        "Corrected sd",
        figure,
        "Above the line q is too narrow, below it too wide. With k̂ above 0.7 the corrections "
        "are noise.",
        f"Joint k̂ {float(result.k[0]):.2f}, {float(result.ess[0]):.0f} effective draws of "
        f"{result.num_draws}.",
    )


def _curves(
    title: str, ranks: dict[str, Any], p_values: dict[str, float], num_draws: int
) -> tuple[Figure, list[str]]:
    """ECDF of ranks in 0…L minus uniform, for the five least uniform quantities."""
    figure, axes = plot(title)
    order = sorted(ranks, key=lambda name: p_values[name])[:5]
    # With missing values, curves have different numbers of ranks; use the widest band.
    z, lower, upper = ecdf_band(min(len(ranks[name]) for name in order), num_draws)
    axes.fill_between(z, lower - z, upper - z, color=GRAY, alpha=0.5, label="95% band")
    for color, name in zip(COLORS, order, strict=False):
        below = np.searchsorted(np.sort(ranks[name]), np.arange(1, num_draws + 1), side="left")
        axes.plot(z, below / len(ranks[name]) - z, color=color, label=name, linewidth=1)
    axes.set_ylabel("ECDF − uniform")
    legend_below(figure)
    return figure, order


def pit(result: PredictiveCheck) -> Picture:
    """Probability integral transform of each row among its replicates."""
    return _pit(result.pit, "PIT: quantiles of the data under the model", "PIT")


def _pit(pit: dict[str, Any], title: str, what: str) -> Picture:
    columns = {
        f"{name}[{p}]" if u.shape[1] > 1 else name: u[:, p]
        for name, u in pit.items()
        for p in range(u.shape[1])
    }
    columns = {n: u[~np.isnan(u)] for n, u in columns.items()}
    columns = {n: u for n, u in columns.items() if len(u)}
    p_values = {n: kolmogorov_smirnov_uniformity(u) for n, u in columns.items()}
    levels = 99
    ranks = {n: np.minimum((u * (levels + 1)).astype(int), levels) for n, u in columns.items()}
    figure, order = _curves(title, ranks, p_values, levels)
    figure.axes[0].set_xlabel("predictive probability of smaller values")
    return Picture(
        what,
        figure,
        "Curves inside the band: the spread is right. First above, then below: the predictions "
        "are too narrow; first below: too wide.",
        f"Smallest p-value {p_values[order[0]]:.2g} ({order[0]}) of {len(columns)} columns.",
    )


@diagnosis_figure("calibration")
def calibration(result: Calibration) -> Picture:
    title = "Ranks of the true latents among samples of q, minus uniform"
    figure, order = _curves(title, result.ranks, result.p_values, result.num_draws)
    figure.axes[0].set_xlabel("rank / (L + 1)")
    return Picture(
        "Simulation-based calibration",
        figure,
        "Curves inside the band: calibrated. First above, then below: q too narrow; all on one "
        "side: shifted.",
        f"Smallest p-value {result.p_value:.2g} ({order[0]}) over {len(result.ranks)} quantities.",
    )


@diagnosis_figure("predictive")
def checks(result: PredictiveCheck) -> Picture:
    figure, axes = plot("Test quantities: data and replicated data")
    names = list(result.observed)
    for i, name in enumerate(names):
        t = result.replicated[name]
        center, spread = t.mean(), t.std() + 1e-12
        low, high = np.quantile((t - center) / spread, [0.025, 0.975])
        axes.plot([low, high], [i, i], color=GRAY, linewidth=6, solid_capstyle="butt")
        shift = np.clip((result.observed[name] - center) / spread, -6, 6)
        axes.plot(shift, i, "o", color=COLORS[4])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("sd of the replicates (cut at ± 6)")
    shown = ", ".join(f"{n} p = {p:.3f}" for n, p in result.p_values.items())
    return Picture(
        "Predictive checks",
        figure,
        "Dots are the data, bars 95% of replicated data sets: dots outside bars are misfits.",
        shown + ".",
    )


@diagnosis_figure("loo")
def loo_pit(result: LeaveOneOutCheck) -> Picture:
    """Leave-one-out PIT, or Pareto k̂ if there are no replicates."""
    if result.pit:
        title = "LOO-PIT: quantiles of the data given the other rows"
        return _pit(result.pit, title, "LOO-PIT")
    figure, axes = plot("Leave-one-out: Pareto k̂ of each row")
    axes.plot(np.sort(result.loo.k), ".", color=COLORS[0])
    axes.axhline(result.loo.good_k, color=COLORS[4], linewidth=1)
    axes.set(xlabel="row, sorted", ylabel="k̂")
    share = float((result.loo.k > result.loo.good_k).mean())
    text = f"{share:.1%} of {len(result.loo.k)} rows above {result.loo.good_k:.2f}."
    return Picture(
        "LOO", figure, "Above the line, importance weights cannot leave the row out.", text
    )


@diagnosis_figure("latents")
def units(result: LatentUse) -> Picture:
    figure, axes = plot("Activity and KL of the latent units")
    order = np.argsort(-result.active.numpy())
    position = np.arange(len(order))
    active = np.maximum(result.active.numpy()[order], 1e-6)
    axes.bar(position - 0.2, active, 0.4, color=COLORS[2], label="Var_x(E_q[z | x])")
    kl = result.kl.numpy()[order]
    if np.isfinite(kl).all():
        axes.bar(position + 0.2, np.maximum(kl, 1e-6), 0.4, color=COLORS[0], label="KL, nats")
    axes.axhline(0.01, color=COLORS[4], linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("unit, sorted")
    if len(order) <= 12:
        axes.set_xticks(position, [result.names[i] for i in order], fontsize=8)
    legend_below(figure)
    used = int((result.active > 0.01).sum())
    kl_text = (
        "" if not np.isfinite(kl).all() else f" KL per unit {kl.min():.3f} to {kl.max():.3f} nats."
    )
    return Picture(
        "Active units",
        figure,
        "Units with bars below the line (0.01) are unused.",
        f"{used} of {len(order)} units are active.{kl_text}",
    )
