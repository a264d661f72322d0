"""Gaps of default fits to the best bounds known.

Does a fit without options end near the best bound, or say that it did not?

Bundled models with their default guides on data in raw units, each fitted

    default   without options: the run decides on its rates and its end
    fixed     2,000 steps at one rate, the default before
    cosine    8,000 steps with a cosine schedule
    em        by expectation-maximization, where the model has it

Bounds are in nats per row, of the held-out rows for networks. The gap is to the best of the four. A
default fit is *false* where it says that it has converged and its gap is above 0.05 and three
Monte-Carlo errors.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppl_lvm import models
from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.fitting.em import fit_em
from ppl_lvm.fitting.svi import fit

CLOSE = 0.05  # nats per row
SMOKE = ("GaussianMixture iris",)
COSINE: dict[str, Any] = {"num_steps": 8000, "schedule": "CosineAnnealingLR(T_max=8000)"}

Case = tuple[Callable[[], Any], str, bool]  # a model, data, and whether it has networks

CASES: dict[str, Case] = {
    "Gaussian wine": (lambda: models.Gaussian(observed=13), "wine", False),
    "PPCA wine": (lambda: models.PPCA(2), "wine", False),
    "PPCA breast_cancer": (lambda: models.PPCA(2), "breast_cancer", False),
    "FactorAnalysis wine": (lambda: models.FactorAnalysis(2), "wine", False),
    "FactorAnalysis breast_cancer": (lambda: models.FactorAnalysis(2), "breast_cancer", False),
    "GaussianMixture iris": (lambda: models.GaussianMixture(3), "iris", False),
    "GaussianMixture wine": (lambda: models.GaussianMixture(3), "wine", False),
    "BayesianGaussianMixture wine": (models.BayesianGaussianMixture, "wine", False),
    "MixtureOfPPCA iris": (models.MixtureOfPPCA, "iris", False),
    "MixtureOfPPCA wine": (models.MixtureOfPPCA, "wine", False),
    "VAE iris": (lambda: models.VAE(likelihood="gaussian"), "iris", True),
    "VAE wine": (lambda: models.VAE(likelihood="gaussian"), "wine", True),
    "VAE digits": (models.VAE, "digits(binarize=8)", True),
}


def measure(name: str, seed: int, limit: int | None = None) -> list[dict[str, Any]]:
    """One row per kind of fit."""
    make, data, network = CASES[name]
    options: dict[str, Any] = {"seed": seed, "progress": False, "method": "svi"}
    options |= {"validation": 0.2} if network else {}
    few: dict[str, Any] = {} if limit is None else {"num_steps": limit}
    fits: dict[str, Callable[[], Any]] = {
        "default": lambda: fit(make(), None, data, **options, **few),
        "fixed": lambda: fit(make(), None, data, **options, **few, accuracy=0),
        "cosine": lambda: fit(make(), None, data, **options, **{**COSINE, **few}),
    }
    if hasattr(make(), "e_step"):
        fits["em"] = lambda: fit_em(make(), data, seed=seed)
    rows: list[dict[str, Any]] = []
    for kind, run_fit in fits.items():
        begun = time.perf_counter()
        try:
            results = run_fit().results
        except Exception as error:  # a fit that fails is a result
            rows.append({"pair": name, "fit": kind, "error": str(error)})
            continue
        of = "held_out" if network else "bound"
        rows.append(
            {
                "pair": name,
                "fit": kind,
                "bound": results[of],
                "±": results[f"{of}_monte_carlo_error"],
                "steps": results["steps"],
                "seconds": time.perf_counter() - begun,
                "converged": results.get("converged"),
                "predicted gain": results.get("predicted_gain"),
            }
        )
    best = max((row["bound"] for row in rows if "bound" in row), default=math.nan)
    for row in rows:
        if "bound" in row:
            row["gap"] = best - row["bound"]
            far = row["gap"] > CLOSE + 3 * row["±"]
            row["outcome"] = "FALSE" if far and row["converged"] else "far" if far else "close"
    return rows


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: int = 0,
    only: str = "",
) -> Result:
    """All pairs.

    Args:
        only: the part of pairs whose name contains this text.
    """
    names = [name for name in CASES if only in name and (name in SMOKE or not smoke)]
    rows: list[Row] = []
    for name in names:
        with harness.quiet():
            rows += measure(name, seed, 600 if smoke else None)
        harness.show(name, [row for row in rows if row["pair"] == name])
    return harness.publish(
        "stopping",
        __doc__ or "",
        rows,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Gap by pair and kind of fit."""
    label = "gap to the best bound, nats per row"
    figure, axes = harness.dot_figure(rows, "pair", "fit", "gap", least=1e-4, label=label)
    axes.axvline(CLOSE, color="gray", linestyle=":", label="0.05 nats")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    harness.command(run)
