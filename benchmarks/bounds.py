"""How tight is each bound, against the particles K and Rényi's α, where log p(x) is known?

On the three programs whose evidence has a closed form. Means over draws with standard errors,
nats summed over the rows; where K ≤ 2 the value is exact (a finite sum, or quadrature).

    L_K = E log 1/K Σ_k w_k                    rises to log p(x) with K
    VR_α,K = E 1/(1-α) log 1/K Σ_k w_k^(1-α)   falls in α; α = 1: ELBO, 0: IWAE, -∞: max
    CUBO_n = 1/n log E wⁿ                      above log p(x); its K-sample value need not be
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
from ppl_lvm.benchmarks import harness as record
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN, KnownProgram, handwritten_loss
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.gradient_suite.subjects import double
from ppl_lvm.benchmarks.handwritten import pathwise
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.programs.pair import ModelGuidePair

ALPHAS = (-2.0, 0.0, 0.5, 1.0, 2.0)


def by_hand_bound(alpha: float) -> Any:
    """The hand-written bound of this α."""
    return pathwise.elbo if alpha == 1 else partial(pathwise.renyi, alpha=alpha)


def objective(alpha: float, num_particles: int) -> Any:
    """Ours of this α; scored, so that it takes every program (values do not depend on it)."""
    if alpha == 1:
        return estimators.ScoreFunction(num_particles=num_particles)
    if num_particles == 1:
        return estimators.ScoreFunction(num_particles=1)  # every α is the ELBO
    return estimators.Renyi(num_particles=num_particles, alpha=alpha)


def sampled(pair: ModelGuidePair, x: Tensor, loss: Any, repeats: int) -> Tensor:
    """Bounds (R,) summed over the rows."""
    return torch.tensor([-loss.loss(pair.model, pair.guide, x) for _ in range(repeats)])


def exact_cubo(known: KnownProgram, params: dict[str, Tensor], x: Tensor, n: float = 2.0) -> float:
    """1/n log E wⁿ by one particle's exact expectation, summed over the rows."""

    def power(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (n * (log_p - log_q)).exp().mean(0)

    return (known.expected(params, x, power, 1).log() / n).sum().item()


def measure(known: KnownProgram, particles: Sequence[int], repeats: int, seed: int) -> list[Row]:
    """A row for each α and K on one program."""
    params, x = known.parameters(seed), known.data(seed)
    pair = ModelGuidePair(known.model(params), known.guide(params), Trace_ELBO())
    pair.materialize_parameters(x)
    rows: list[Row] = []
    with pair.scope(), torch.no_grad():
        params = handwritten_loss(pair.unconstrained_parameters)
        evidence = known.handwritten_loss.log_evidence(params, x).sum().item()
        for alpha in ALPHAS:
            for K in particles:
                draws = sampled(pair, x, objective(alpha, K), repeats)
                exactly = None
                if K <= 2:
                    value = known.expected(params, x, by_hand_bound(alpha), K)
                    exactly = value.sum().item()
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
                        "exact": None if exactly is None else evidence - exactly,
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


def run(*, smoke: bool = False, directory: str | Path | None = None, seed: int = 0) -> Result:
    """The gap to the evidence on all three programs."""
    torch.manual_seed(seed)
    particles = (1, 2, 10) if smoke else (1, 2, 5, 10, 50, 200, 1000)
    rows: list[Row] = []
    with local_parameters(), double():
        for known in KNOWN.values():
            rows += measure(known, particles, 30 if smoke else 1000, seed)
    return record.publish(
        "bounds", __doc__ or "", rows, draw(rows), seed=seed, directory=directory, smoke=smoke
    )


def draw(rows: Sequence[Row]) -> Figure:
    """The gap against K, one line for each α."""
    programs = list(dict.fromkeys(row["program"] for row in rows))
    figure = Figure(figsize=(5 * len(programs), 4), layout="constrained")
    panels = figure.subplots(1, len(programs), squeeze=False)[0]
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
    record.command(run)
