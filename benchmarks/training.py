"""Held-out fit of every estimator after training.

Which estimator trains a model best, at equal steps and at equal seconds?

The same model, guide, data and optimizer with every supported estimator, K particles each;
held-out log p(x) in nats per row, from 1,000 particles, mean and standard error over seeds.

    normal   digits, z_n ~ Normal(0, I) of 8, decoder and encoder with one hidden layer of 128
    bits     digits, z_n ~ Bernoulli(a) of 16, the same networks
    mixture  iris, c_n ~ Categorical(π) of 3, x_n ~ Normal(μ_c, diag σ_c²); the guide's q(c | x) a
             network of one hidden layer of 32

"Equal seconds" runs the number of steps that fit into the time at the speed of the equal-steps run.
Seconds are those spent in steps, which are captured by default (`engine`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import pyro
import torch
from matplotlib.figure import Figure
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import estimators
from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.compiler import Level
from ppl_lvm.core.validate import Count, Positive, Seed
from ppl_lvm.data import Data, load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.vae import VAE
from ppl_lvm.nn import MLP
from ppl_lvm.runs.run import Run


class BinaryVAE(PyroModule):
    """z_n ~ Bernoulli(σ(a)) of D bits, x_n ~ Bernoulli(σ(decoder(z_n))) of P pixels."""

    def __init__(self, latent: int = 16, observed: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(latent))
        self.decoder = MLP(latent, observed, (hidden,))

    def forward(self, x: Tensor) -> None:
        a = self.a
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=a).to_event(1))
            pyro.sample("x", Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class BinaryGuide(PyroModule):
    """q(z_n | x_n) = Bernoulli(σ(encoder(x_n)))."""

    def __init__(self, latent: int = 16, observed: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.encoder = MLP(observed, latent, (hidden,))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.encoder(x)).to_event(1))


class PlainMixture(PyroModule):
    """c_n ~ Categorical(π), x_n ~ Normal(μ_c, diag σ_c²)."""

    def __init__(self, components: int = 3, observed: int = 4) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, observed) + 3)
        self.log_scales = nn.Parameter(torch.zeros(components, observed))

    def forward(self, x: Tensor) -> None:
        logits, means, log_scales = self.logits, self.means, self.log_scales
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(logits=logits))
            scales = 0.05 + log_scales[c].exp()
            pyro.sample("x", Normal(means[c], scales).to_event(1), obs=x)


class MixtureGuide(PyroModule):
    """q(c_n | x_n) = Categorical(softmax(encoder(x_n)))."""

    def __init__(self, components: int = 3, observed: int = 4) -> None:
        super().__init__()
        self.encoder = MLP(observed, components, (32,))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", Categorical(logits=self.encoder(x)))


@dataclass(frozen=True)
class Task:
    """A pair and its data."""

    name: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: str
    held_out: int
    learning_rate: float


TASKS = (
    Task("normal", VAE, AmortizedNormal, "digits(binarize=8)", 297, 1e-3),
    Task("bits", BinaryVAE, BinaryGuide, "digits(binarize=8)", 297, 1e-3),
    Task("mixture", PlainMixture, MixtureGuide, "iris", 50, 1e-2),
)


def candidates(num_particles: int) -> Iterator[str]:
    """Every estimator in call syntax, without upper bounds, which cannot train a model."""
    for name in estimators.__all__:
        if not getattr(getattr(estimators, name), "is_upper_bound", False):
            yield f"{name}(num_particles={num_particles})"


def train(
    task: Task, pool: Data, few: Data, objective: str, steps: int, seed: int, engine: Level
) -> Run:
    """One fit with batches of 100. `few` validation rows, whose score is not used."""
    return fit(
        task.model,
        task.guide,
        pool,
        objective=objective,
        optimizer=f"Adam(lr={task.learning_rate})",
        num_steps=steps,
        accuracy=0,
        batch_size=100,
        validation=few,
        validate_every=steps,
        seed=seed,
        engine=engine,
        progress=False,
    )


@dataclass(frozen=True)
class TrainingBudget:
    """Steps, seconds, seeds, and particles of the evaluation."""

    steps: int
    seconds: float
    seeds: int
    particles: int
    engine: Level
    rows: int | None = None  # training rows; None for all
    estimators: int | None = None  # the first ones; None for all


def measure(task: Task, num_particles: int, budget: TrainingBudget, seed: int) -> list[Row]:
    """Two rows per estimator that supports the pair."""
    pool, held_out = load_data(task.data).split(task.held_out, seed)
    _, few = held_out.split(10, seed)
    if budget.rows is not None:
        _, pool = pool.split(budget.rows, seed)
        held_out = few
    rows: list[Row] = []
    for objective in islice(candidates(num_particles), budget.estimators):
        scores: dict[str, list[tuple[float, int, float]]] = {"steps": [], "seconds": []}
        try:
            for run_seed in range(seed, seed + budget.seeds):
                run = train(task, pool, few, objective, budget.steps, run_seed, budget.engine)
                scores["steps"].append(_score(run, held_out, budget.particles))
                per_step = scores["steps"][-1][2] / budget.steps
                steps = max(1, math.floor(budget.seconds / per_step))
                run = train(task, pool, few, objective, steps, run_seed, budget.engine)
                scores["seconds"].append(_score(run, held_out, budget.particles))
        except ValueError as error:
            print(f"{task.name}: {objective} skipped: {error}")
            continue
        for equal, results in scores.items():
            values = [value for value, _, _ in results]
            spread = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            rows.append(
                {
                    "task": task.name,
                    "equal": equal,
                    "estimator": objective.partition("(")[0],
                    "K": num_particles,
                    "held-out log p(x), nats": mean(values),
                    "± over seeds": spread,
                    "steps": round(mean(steps for _, steps, _ in results)),
                    "seconds": mean(seconds for _, _, seconds in results),
                }
            )
    return rows


def _score(run: Run, held_out: Data, particles: int) -> tuple[float, int, float]:
    """Held-out log p(x), steps and seconds."""
    entry = run.restarts[0]
    value = run.log_evidence(held_out, num_particles=particles).value
    return value, int(entry["steps"]), float(entry["seconds"])


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: Seed = 0,
    particles: Count = 4,
    steps: Count = 1500,
    seconds: Positive = 5.0,
    seeds: Count = 3,
    engine: str = "captured",
    task: str | None = None,
) -> Result:
    """All three tasks, or one; `particles` is K of every estimator, an even number."""
    level = cast(Level, engine)
    budget = TrainingBudget(steps, seconds, seeds, 1000, level)
    if smoke:
        budget = TrainingBudget(2, 0.005, 1, 10, level, rows=50, estimators=5)
    tasks = [t for t in TASKS if task in (None, t.name)]
    if not tasks:
        raise ValueError(
            f"task: {task!r} is unknown. Available: {', '.join(t.name for t in TASKS)}."
        )
    rows = [row for t in tasks for row in measure(t, particles, budget, seed)]
    rows.sort(key=lambda row: (row["task"], row["equal"], -row["held-out log p(x), nats"]))
    return harness.publish(
        "training", __doc__ or "", rows, draw(rows), seed=seed, directory=directory, smoke=smoke
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Held-out log p(x) of every estimator at equal steps and equal seconds."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = harness.new_figure(6 * len(tasks), 5, columns=len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        mine = [row for row in rows if row["task"] == task]
        names = list(dict.fromkeys(row["estimator"] for row in mine))[::-1]
        for equal, marker in (("steps", "o"), ("seconds", "s")):
            line = [row for row in mine if row["equal"] == equal]
            axes.errorbar(
                [row["held-out log p(x), nats"] for row in line],
                [names.index(row["estimator"]) for row in line],
                xerr=[0 if math.isnan(e := row["± over seeds"]) else e for row in line],
                fmt=marker,
                label=f"equal {equal}",
            )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set(title=task, xlabel="held-out log p(x), nats per row")
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    harness.command(run)
