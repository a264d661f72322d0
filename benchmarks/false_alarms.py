"""False-positive rate of the diagnostics.

How often does a diagnosis of a correct fit raise an alarm?

Data are simulated from the model, the guide's family contains the posterior, training ends with a
decaying learning rate, and all diagnostics run, for each seed:

    linear    z ~ N(0, I), x | z ~ N(W z, .7² I), W known; the encoder is learned
    global    mu ~ N(0, 1), x ~ N(mu, 1); q(mu) is learned
    mixture   two separate clusters, label summed out; all parameters learned, two restarts

An alarm is a verdict "warning" or "bad". The shares are of verdicts (without "unknown") and of
tables with at least one alarm. Verdicts are dependent: an accidental slope affects three of them.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pyro.distributions import Categorical, MultivariateNormal, Normal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.core.validate import Count, Seed
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.fitting.svi import fit

NOISE = 0.7
LOADINGS = [[1.2, 0.1], [-0.6, 0.9], [0.3, -0.8], [0.9, 0.5], [-0.2, 1.1]]
CENTERS = [[-3.0, 0.0], [3.0, 1.0]]


class Linear(PyroModule):
    """z_n ~ N(0, I_2), x_n ~ N(W z_n, .7² I_5)."""

    def forward(self, x: Tensor) -> None:
        W = torch.tensor(LOADINGS)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(z @ W.T, NOISE).to_event(1), obs=x)


class Encoder(PyroModule):
    """q(z | x) = N(A x, L Lᵀ): contains the posterior; training starts near it."""

    def __init__(self) -> None:
        super().__init__()
        W = torch.tensor(LOADINGS)
        covariance = torch.linalg.inv(torch.eye(2) + W.T @ W / NOISE**2)
        self.A = nn.Parameter(0.8 * covariance @ W.T / NOISE**2)
        root = 1.3 * torch.linalg.cholesky(covariance)
        self.root = PyroParam(root, constraint=constraints.lower_cholesky)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(x @ self.A.T, scale_tril=self.root))


class Mean(PyroModule):
    """mu ~ N(0, 1), x_n ~ N(mu, 1)."""

    def forward(self, x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0), obs=x)


class MeanGuide(PyroModule):
    """q(mu) = N(loc, scale²)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.scale = PyroParam(torch.tensor(0.3), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        pyro.sample("mu", Normal(self.loc, self.scale))


class Clusters(PyroModule):
    """k_n ~ Categorical(1/2, 1/2), x_n ~ N(m_k, s²), in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(CENTERS) + 0.5 * torch.randn(2, 2))
        self.s = PyroParam(torch.tensor(1.5), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.m[k], self.s).to_event(1), obs=x)


def no_guide(x: Tensor) -> None:
    """Every latent of `Clusters` is summed out."""


def _fit(model: Any, guide: Any, x: Tensor, steps: int, seed: int, **more: Any) -> Any:
    return fit(
        model,
        guide,
        x,
        num_steps=steps,
        optimizer="Adam(lr=0.03)",
        schedule=f"CosineAnnealingLR(T_max={steps})",
        seed=seed,
        progress=False,
        **more,
    )


def linear(seed: int, steps: int, temperatures: int) -> Diagnosis:
    """Local latents, evaluated on held-out rows."""
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(400, 2))
    rows = torch.tensor(z @ np.array(LOADINGS).T + NOISE * draw.normal(size=(400, 5))).float()
    run = _fit(Linear, Encoder, rows[:300], steps, seed)
    return run.diagnose(rows[:300], held_out=rows[300:], temperatures=temperatures, seed=seed)


def shared(seed: int, steps: int, temperatures: int) -> Diagnosis:
    """A global latent, with another true value for every seed."""
    draw = np.random.default_rng(seed)
    x = torch.tensor(draw.normal() + draw.normal(size=100)).float()
    run = _fit(Mean, MeanGuide, x, steps, seed)
    return run.diagnose(x, temperatures=temperatures, seed=seed)


def mixture(seed: int, steps: int, temperatures: int) -> Diagnosis:
    """A label summed out, two restarts, evaluated on held-out rows."""
    draw = np.random.default_rng(seed)
    k = draw.integers(2, size=1200)
    rows = torch.tensor(np.array(CENTERS)[k] + draw.normal(size=(1200, 2))).float()
    run = _fit(Clusters, no_guide, rows[:1000], steps, seed, restarts=2)
    return run.diagnose(rows[:1000], held_out=rows[1000:], temperatures=temperatures, seed=seed)


CASES: dict[str, Callable[[int, int, int], Diagnosis]] = {
    "linear": linear,
    "global": shared,
    "mixture": mixture,
}


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0, seeds: Count = 100
) -> Result:
    """Alarms over `seeds` seeds of each correct fit."""
    count, steps, temperatures = (1, 150, 5) if smoke else (seeds, 1500, 100)
    rows: list[Row] = []
    alarms: dict[str, Counter[str]] = {}
    for case, make in CASES.items():
        alarms[case] = Counter()
        verdicts = raised = tables = 0
        for number in range(seed, seed + count):
            findings = make(number, steps, temperatures).findings
            names = [f.name for f in findings if f.verdict in ("warning", "bad")]
            alarms[case].update(names)
            verdicts += sum(f.verdict != "unknown" for f in findings)
            raised += len(names)
            tables += bool(names)
        rows.append(
            {
                "case": case,
                "tables": count,
                "verdicts": verdicts,
                "alarms": raised,
                "share of verdicts": raised / verdicts,
                "tables with an alarm": tables / count,
                "error": (max(tables, 1) * max(count - tables, 1) / count**3) ** 0.5,
            }
        )
    return harness.publish(
        "false_alarms",
        __doc__ or "",
        rows,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        by_row={case: dict(counts) for case, counts in alarms.items()},
    )


def draw(rows: list[Row]) -> Figure:
    """Shares of verdicts and of tables, with one in twenty."""
    figure, (axes,) = harness.new_figure(6, 3.5)
    at = np.arange(len(rows))
    axes.bar(at - 0.2, [r["share of verdicts"] for r in rows], 0.4, label="of verdicts")
    axes.bar(at + 0.2, [r["tables with an alarm"] for r in rows], 0.4, label="of tables")
    axes.axhline(0.05, color="black", linewidth=1, label="one in twenty")
    axes.set_xticks(at, [r["case"] for r in rows])
    axes.set_ylabel("share with a false alarm")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    harness.command(run)
