"""Posteriors with reference draws: means, standard deviations and verdicts.

Does a fit without options arrive at the posterior, and does its verdict say so?

On 32 posteriors of posteriordb, from regressions with flat priors to hidden Markov models and an
ordinary differential equation. Errors of means are in reference standard deviations. A fit is
*close* where every mean is within 0.1 and every ratio of standard deviations within 0.9 to 1.1, and
*visibly wrong* where a mean is off by more than 0.3 or a ratio outside 0.75 to 1.33.

Methods: those of `fit` (`method="auto"`, `"laplace"`, …), and as Pyro's users fit them
`AutoNormal` and `AutoMultivariateNormal` with Adam(0.01) for 2,000 steps. With the extra `bench`
the regressions and eight schools also by NumPyro's NUTS, 1,000 + 1,000, whose gradients are those
after the warm-up, by its AutoMultivariateNormal, and by BlackJAX's Pathfinder of four paths.
Seconds include all recording and compilation.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from ppl_lvm.approximation.methods import NORMALS
from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.posterior_suite import jax_methods
from ppl_lvm.benchmarks.posterior_suite.base import Posterior
from ppl_lvm.benchmarks.posterior_suite.programs import posterior
from ppl_lvm.core.validate import Seed
from ppl_lvm.fitting.svi import fit
from ppl_lvm.testing.expectations import double_precision

SUITE = Path(__file__).parent / "posterior_suite"
PYRO = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}
SMOKE = ("kidiq-kidscore_momhs", "eight_schools-eight_schools_noncentered")
CLOSE, RATIO = 0.1, (0.9, 1.1)
WRONG, WRONG_RATIO = 0.3, (0.75, 1.33)
DRAWS = 4000


def references() -> dict[str, dict[str, tuple[float, float]]]:
    """Posterior -> parameter -> (mean, standard deviation)."""
    read: dict[str, dict[str, tuple[float, float]]] = json.loads(
        (SUITE / "reference.json").read_text()
    )
    return read


def load(name: str) -> Posterior:
    """The posterior of this name."""
    return posterior(name, json.loads((SUITE / "data" / f"{name.split('-')[0]}.json").read_text()))


def measure(name: str, method: str, seed: int) -> Row:
    """Errors, seconds and verdict of one fit."""
    known = load(name)
    begun = time.perf_counter()
    try:
        cpu = time.process_time()
        if method in jax_methods.METHODS:
            values, gradients = jax_methods.METHODS[method](name, known.batch, seed)
            verdict = None
        else:
            run = _fit(known, method, seed)
            gradients = run.results.get("gradients", run.results["steps"])
            verdict = run.results.get("verdict")
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        if method not in jax_methods.METHODS:
            values = run.posterior(min(DRAWS, _available(run)))
        draws = known.read(values)
    except Exception as error:  # a method that fails is a result
        return {"posterior": name, "method": method, "error": f"{type(error).__name__}: {error}"}
    means, ratios = [], []
    for parameter, (mean, sd) in references()[name].items():
        x = draws[parameter].double()
        means.append(abs(float(x.mean()) - mean) / sd)
        ratios.append(float(x.std()) / sd)
    return {
        "posterior": name,
        "method": method,
        "worst mean, sd": max(means),
        "least sd ratio": min(ratios),
        "largest sd ratio": max(ratios),
        "gradients": gradients,
        "seconds": seconds,
        "CPU seconds": cpu,
        "verdict": verdict,
        "outcome": outcome(max(means), min(ratios), max(ratios)),
    }


def outcome(mean: float, least: float, largest: float) -> str:
    """ "close", "visibly wrong" or "between"."""
    if mean <= CLOSE and least >= RATIO[0] and largest <= RATIO[1]:
        return "close"
    within = mean <= WRONG and least >= WRONG_RATIO[0] and largest <= WRONG_RATIO[1]
    return "between" if within else "visibly wrong"


def _fit(known: Posterior, method: Any, seed: int) -> Any:
    with harness.quiet():
        if method not in PYRO:
            return fit(known.model, None, known.batch, method=method, seed=seed, progress=False)
        with double_precision():
            guide = PYRO[method](known.model)
            return fit(known.model, guide, known.batch, seed=seed, progress=False)


def _available(run: Any) -> int:
    return len(next(iter(run.draws.values()))) if run.draws else DRAWS


def counts(rows: Sequence[Row]) -> list[Row]:
    """By method: posteriors that are close and visibly wrong, false verdicts, median seconds."""
    table: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        done = [row for row in of if "outcome" in row]
        outcomes = [row["outcome"] for row in done]
        good = [row["outcome"] for row in done if row["verdict"] == "good"]
        seconds, cpu = (
            torch.tensor([row[key] for row in done] or [float("nan")])
            for key in ("seconds", "CPU seconds")
        )
        table.append(
            {
                "method": method,
                "posteriors": len(of),
                "ran": len(done),
                "close": outcomes.count("close"),
                "not visibly wrong": len(done) - outcomes.count("visibly wrong"),
                "called good, but visibly wrong": good.count("visibly wrong"),
                "close, but not called good": sum(
                    row["outcome"] == "close" and row["verdict"] == "not good" for row in done
                ),
                "median seconds": float(seconds.median()),
                "median CPU seconds": float(cpu.median()),
            }
        )
    return table


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: Seed = 0,
    methods: str = "",
    only: str = "",
) -> Result:
    """All posteriors by all methods.

    Args:
        methods: names with commas between; all by default.
        only: the part of posteriors whose name contains this text.
    """
    chosen = methods.split(",") if methods else ["auto", *NORMALS, *PYRO, *jax_methods.METHODS]
    if smoke:
        chosen = chosen[:1]
    names = [n for n in references() if only in n and (n in SMOKE or not smoke)]
    rows: list[Row] = []
    for name in names:
        for method in chosen:
            if method in jax_methods.METHODS and not jax_methods.serves(name, method):
                continue
            rows.append(measure(name, method, seed))
            print(", ".join(f"{key} {harness_text(value)}" for key, value in rows[-1].items()))
    table = counts(rows)
    return harness.publish(
        "posteriors",
        __doc__ or "",
        table,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        posteriors=[dict(row) for row in rows],
    )


def harness_text(value: Any) -> str:
    """Numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(rows: Sequence[Row]) -> Figure:
    """Worst error of a mean by posterior and method."""
    keys = ("posterior", "method", "worst mean, sd")
    label = "largest error of a mean, posterior sd"
    figure, axes = harness.dot_figure(rows, *keys, least=1e-3, label=label)
    axes.axvline(CLOSE, color="gray", linestyle=":", label="0.1 and 0.3 sd")
    axes.axvline(WRONG, color="gray", linestyle=":")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    harness.command(run)
