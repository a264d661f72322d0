"""Tightness of the bounds against K and Rényi's α.

How tight is each bound, by the particles K and Rényi's α, where log p(x) is known?

On the three programs with known evidence. Means over draws with standard errors, nats summed over
rows; for K ≤ 2 the exact value (a finite sum, or quadrature).

    L_K = E log 1/K Σ_k w_k                    increases to log p(x) with K
    VR_α,K = E 1/(1-α) log 1/K Σ_k w_k^(1-α)   decreases in α; α = 1: ELBO, 0: IWAE, -∞: max
    CUBO_n = 1/n log E wⁿ                      above log p(x), unlike its K-sample value
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm import estimators
from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN, KnownProgram, handwritten_parameters
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.handwritten import pathwise
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.core.validate import Seed
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.testing.expectations import double_precision

ALPHAS = (-2.0, 0.0, 0.5, 1.0, 2.0)


def handwritten_bound(alpha: float) -> Any:
    """The hand-written bound of order α."""
    return pathwise.elbo if alpha == 1 else partial(pathwise.renyi, alpha=alpha)


def objective(alpha: float, num_particles: int) -> Any:
    """Our bound of order α, in its score-function form, which accepts every program."""
    if alpha == 1:
        return estimators.ScoreFunction(num_particles=num_particles)
    if num_particles == 1:
        return estimators.ScoreFunction(num_particles=1)  # every α is the ELBO
    return estimators.Renyi(num_particles=num_particles, alpha=alpha)


def sampled(pair: ModelGuidePair, x: Tensor, loss: Any, repeats: int) -> Tensor:
    """Bounds (R,) summed over the rows."""
    return torch.tensor([-loss.loss(pair.model, pair.guide, x) for _ in range(repeats)])


def exact_cubo(known: KnownProgram, params: dict[str, Tensor], x: Tensor, n: float = 2.0) -> float:
    """1/n log E wⁿ from the exact expectation of one particle, summed over rows."""

    def power(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (n * (log_p - log_q)).exp().mean(0)

    return (known.expected(params, x, power, 1).log() / n).sum().item()


def measure(known: KnownProgram, particles: Sequence[int], repeats: int, seed: int) -> list[Row]:
    """One row per α and K on one program."""
    params, x = known.parameters(seed), known.data(seed)
    pair = ModelGuidePair(known.model(params), known.guide(params), Trace_ELBO())
    pair.materialize_parameters(x)
    rows: list[Row] = []
    with pair.scope(), torch.no_grad():
        params = handwritten_parameters(pair.unconstrained_parameters)
        evidence = known.module.log_evidence(params, x).sum().item()
        for alpha in ALPHAS:
            for K in particles:
                draws = sampled(pair, x, objective(alpha, K), repeats)
                exact_value = None
                if K <= 2:
                    value = known.expected(params, x, handwritten_bound(alpha), K)
                    exact_value = value.sum().item()
                rows.append(
                    {
                        "program": known.name,
                        "bound": "ELBO"
                        if alpha == 1
                        else "IWAE"
                        if alpha == 0
                        else f"α = {alpha:g}",
                        "K": K,
                        "log p(x) - bound, nats": evidence - draws.mean().item(),
                        "± (standard error)": (draws.std() / repeats**0.5).item(),
                        "exact": None if exact_value is None else evidence - exact_value,
                    }
                )
        rows.append(
            {
                "program": known.name,
                "bound": "CUBO, n = 2",
                "K": None,
                "log p(x) - bound, nats": None,
                "± (standard error)": None,
                "exact": evidence - exact_cubo(known, params, x),
            }
        )
    return rows


def run(*, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0) -> Result:
    """Gaps to the evidence on all three programs."""
    torch.manual_seed(seed)
    particles = (1, 2, 10) if smoke else (1, 2, 5, 10, 50, 200, 1000)
    rows: list[Row] = []
    with local_parameters(), double_precision():
        for known in KNOWN.values():
            rows += measure(known, particles, 30 if smoke else 1000, seed)
    return harness.publish(
        "bounds", __doc__ or "", rows, draw(rows), seed=seed, directory=directory, smoke=smoke
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Gap against K, one line per α."""
    programs = list(dict.fromkeys(row["program"] for row in rows))
    figure, panels = harness.new_figure(5 * len(programs), 4, columns=len(programs))
    gap = "log p(x) - bound, nats"
    for axes, program in zip(panels, programs, strict=True):
        mine = [row for row in rows if row["program"] == program]
        for bound in dict.fromkeys(row["bound"] for row in mine):
            line = [row for row in mine if row["bound"] == bound]
            if line[0]["K"] is None:
                axes.axhline(-line[0]["exact"], color="gray", linestyle=":", label=bound)
                continue
            axes.errorbar(
                [row["K"] for row in line],
                [-row[gap] for row in line],
                [row["± (standard error)"] for row in line],
                marker="o",
                label=bound,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xscale="log", title=program, xlabel="particles K", ylabel="bound - log p(x), nats")
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    harness.command(run)
