"""Figures of a diagnosis, by slug of the diagnostic.

Each picture has a caption on how to read it and an alternative text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppl_lvm.diagnostics.bound_tightness import Sandwich, Tightness
from ppl_lvm.diagnostics.calibration import Calibration
from ppl_lvm.diagnostics.finding import P_VALUE
from ppl_lvm.diagnostics.latent_usage import LatentUse
from ppl_lvm.diagnostics.leave_one_out import LeaveOneOutCheck
from ppl_lvm.diagnostics.pareto_k import ParetoK, number_or_exact
from ppl_lvm.diagnostics.predictive_checks import (
    FEWEST_ROWS,
    PredictiveCheck,
    column_label,
    kolmogorov_smirnov_uniformity,
)
from ppl_lvm.report.figures.style import (
    COLORS,
    GRAY,
    INK,
    least_range,
    legend_below,
    note,
    plot,
    some_of,
)
from ppl_lvm.report.run_figure import Picture

FIGURES: dict[str, Callable[[Any], Picture | None]] = {}


def diagnosis_figure(
    slug: str,
) -> Callable[[Callable[[Any], Picture | None]], Callable[[Any], Picture | None]]:
    """Declare a function to draw the result of the diagnostic `slug`."""

    def declare(draw: Callable[[Any], Picture | None]) -> Callable[[Any], Picture | None]:
        FIGURES[slug] = draw
        return draw

    return declare


def pictures(details: dict[str, Any]) -> list[Picture]:
    """Pictures of the results that a `Diagnosis` was computed from."""
    drawn = [draw(details[slug]) for slug, draw in FIGURES.items() if slug in details]
    if "predictive" in details and "loo" not in details and details["predictive"].pit:
        drawn.append(pit(details["predictive"]))
    return [picture for picture in drawn if picture is not None]


@diagnosis_figure("tightness")
def bounds(result: Tightness) -> Picture:
    figure, axes = plot("Lower bounds on log p(x)")
    K = sorted(result.bounds)
    values = [result.bounds[k].value for k in K]
    errors = [2 * result.bounds[k].monte_carlo_error for k in K]
    label = "IWAE-K (K = 1: ELBO), ± 2 errors"
    axes.errorbar(K, values, errors, marker="o", color=COLORS[0], label=label)
    axes.set_xscale("log")
    axes.set_xlabel("particles K")
    axes.set_ylabel("nats per row")
    text = ", ".join(f"IWAE-{k} {v:.3f}" for k, v in zip(K, values, strict=True))
    if result.annealed is not None:
        value, error = result.annealed.value, result.annealed.monte_carlo_error
        label = "annealed importance sampling, ± 2 errors"
        axes.axhline(value, color=COLORS[4], label=label)
        axes.axhspan(value - 2 * error, value + 2 * error, color=COLORS[4], alpha=0.2, linewidth=0)
        text += f", annealed importance sampling {value:.3f} ± {error:.3f}"
    if result.exact is not None:
        exact = float(result.exact.mean())
        axes.axhline(exact, color=INK, linestyle="--", label="exact")
        text += f", exact {exact:.3f}"
    least_range(axes, 0.05)
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
    k = np.sort(result.k[np.isfinite(result.k)])
    exact = len(result.k) - len(k)
    axes.plot(exact + np.arange(len(k)), k, ".", color=COLORS[0], markersize=4)
    axes.set_xlim(-0.02 * len(result.k), 1.02 * len(result.k))
    if exact:
        note(axes, f"exact (equal weights, no k̂): {exact} of {len(result.k)} rows")
    for level in (0.5, 0.7):
        axes.axhline(level, color=GRAY if level == 0.5 else COLORS[4], linewidth=1)
    axes.set_xlabel("row, sorted")
    axes.set_ylabel("k̂")
    return Picture(
        "k̂ per row",
        figure,
        "Above the upper line (0.7), importance weights and q are unreliable for that row.",
        f"{result.share_bad:.1%} of {len(result.k)} rows above 0.7, median "
        f"{number_or_exact(float(np.median(result.k)))}.",
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
        f"Joint k̂ {number_or_exact(float(result.k[0]))}, {float(result.ess[0]):.0f} effective "
        f"draws of {result.num_draws}.",
    )


def _curves(
    title: str, ranks: dict[str, Any], p_values: dict[str, float], num_draws: int
) -> tuple[Figure, list[str]]:
    """ECDF of ranks in 0…L minus uniform, for the five least uniform quantities.

    The band has the level of the test: a Kolmogorov–Smirnov band at 0.005 / quantities. Curves of
    quantities that fail their test are colored.
    """
    from scipy.stats import kstwo

    figure, axes = plot(title + some_of(min(5, len(ranks)), len(ranks), "quantities"))
    order = sorted(ranks, key=lambda name: p_values[name])[:5]
    # With missing values, curves have different numbers of ranks; use the widest band.
    rows = min(len(ranks[name]) for name in order)
    z = np.arange(1, num_draws + 1) / (num_draws + 1)
    half = float(kstwo.isf(P_VALUE.good / len(ranks), rows))
    label = f"p ≥ {P_VALUE.good} of {len(ranks)}"
    axes.fill_between(z, -half, half, color=GRAY, alpha=0.5, label=label)
    for color, name in zip(COLORS, order, strict=False):
        below = np.searchsorted(np.sort(ranks[name]), np.arange(1, num_draws + 1), side="left")
        fails = p_values[name] * len(ranks) < P_VALUE.good
        style = {"color": color, "linewidth": 1.6} if fails else {"color": INK, "linewidth": 0.7}
        axes.plot(z, below / len(ranks[name]) - z, label=name, **style)  # type: ignore[arg-type]
    axes.set_ylabel("ECDF − uniform")
    least_range(axes, 0.02)
    legend_below(figure)
    return figure, order


def _tested(p_values: dict[str, float], worst: str, what: str) -> str:
    """The p-value of the table, and the number of quantities that fail."""
    count = len(p_values)
    failed = sum(p * count < P_VALUE.good for p in p_values.values())
    smallest = min(1.0, p_values[worst] * count)
    return f"{failed} of {count} {what} fail; smallest corrected p-value {smallest:.2g} ({worst})."


def pit(result: PredictiveCheck) -> Picture | None:
    """Probability integral transform of each row among its replicates."""
    return _pit(result.pit, "PIT: quantiles of the data under the model", "PIT", result.columns)


def _pit(
    pit: dict[str, Any], title: str, what: str, names: Mapping[str, Sequence[str]]
) -> Picture | None:
    """None for fewer than 20 rows, of which a curve says nothing."""
    columns = {
        f"{name}: {column_label(p, names[name])}"
        if name in names
        else f"{name}[{p}]"
        if u.shape[1] > 1
        else name: u[:, p]
        for name, u in pit.items()
        for p in range(u.shape[1])
    }
    columns = {n: u[~np.isnan(u)] for n, u in columns.items()}
    columns = {n: u for n, u in columns.items() if len(u) >= FEWEST_ROWS}
    if not columns:
        return None
    p_values = {n: kolmogorov_smirnov_uniformity(u) for n, u in columns.items()}
    levels = 99
    ranks = {n: np.minimum((u * (levels + 1)).astype(int), levels) for n, u in columns.items()}
    figure, order = _curves(title, ranks, p_values, levels)
    figure.axes[0].set_xlabel("predictive probability of smaller values")
    return Picture(
        what,
        figure,
        "The band is the level of the test. First above, then below: the predictions are too "
        "narrow; first below: too wide.",
        _tested(p_values, order[0], "columns"),
    )


@diagnosis_figure("calibration")
def calibration(result: Calibration) -> Picture:
    title = "Ranks of the true latents among samples of q, minus uniform"
    figure, order = _curves(title, result.ranks, result.p_values, result.num_draws)
    figure.axes[0].set_xlabel("rank / (L + 1)")
    return Picture(
        "Simulation-based calibration",
        figure,
        "Colored curves fail the χ² test of their ranks. First above, then below: q too narrow; "
        "all on one side: shifted.",
        _tested(result.p_values, order[0], "quantities"),
    )


@diagnosis_figure("predictive")
def checks(result: PredictiveCheck) -> Picture:
    """Data among replicates; bars end where a check begins to fail."""
    names = list(result.observed)
    figure, axes = plot("Test quantities: data and replicated data", 1.3 + 0.3 * len(names))
    corrected = result.corrected
    for i, name in enumerate(names):
        t = np.sort(result.replicated[name])
        center, spread = t.mean(), t.std() + 1e-12
        beyond = max(1, math.ceil(P_VALUE.good / 2 / len(names) * len(t)))
        for ends, width in (((t[beyond - 1], t[-beyond]), 2), (np.quantile(t, [0.25, 0.75]), 6)):
            bar = (np.asarray(ends) - center) / spread
            axes.plot(bar, [i, i], color=GRAY, linewidth=width, solid_capstyle="butt")
        shift = np.clip((result.observed[name] - center) / spread, -6, 6)
        fails = corrected[name] < P_VALUE.good
        axes.plot(shift, i, "X" if fails else "o", color=COLORS[4] if fails else COLORS[0])
    axes.set_yticks(range(len(names)), [result.label(n) for n in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("sd of the replicates (cut at ± 6)")
    worst, p = result.worst
    failed = [result.label(n) for n in names if corrected[n] < P_VALUE.good]
    return Picture(
        "Predictive checks",
        figure,
        "The data against replicated data sets: thick half of these, thin the range where one "
        "quantity passes. Crosses fail at the level of the table; of a quantity per column the "
        "worst column is drawn, and its p-value counts all columns.",
        (f"Misfit: {', '.join(failed)}. " if failed else "No misfit. ")
        + f"Smallest corrected p-value {p:.2g} ({result.label(worst)}).",
    )


@diagnosis_figure("loo")
def loo_pit(result: LeaveOneOutCheck) -> Picture | None:
    """Leave-one-out PIT, or Pareto k̂ if there are no replicates."""
    if result.pit:
        title = "LOO-PIT: quantiles of the data given the other rows"
        return _pit(result.pit, title, "LOO-PIT", {})
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
