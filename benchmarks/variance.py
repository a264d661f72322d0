"""Gradient variance of default objectives.

Does the gradient of a default objective vary more than that of Trace_ELBO at the same cost?

On every bundled model with every guide that suits it, on exact programs with discrete and global
latents, and on Dirichlet-process mixtures, for the default objective and for Trace_ELBO with as
many particles (TraceEnum_ELBO where sites are summed out):

    variance   Σ Var g over all parameters, with its standard error
    × variance the ratio of the two variances
    ms         one eager gradient, median of interleaved rounds
    × cost     the ratio of variance × ms: of the times to reach a given precision
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.distributions import Beta, Categorical, Normal
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from ppl_lvm import guides, models
from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.gradient_suite import samples
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.speed_suite.timing import interleaved
from ppl_lvm.core.validate import Count, Seed
from ppl_lvm.data import load_data
from ppl_lvm.estimators import objectives
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.programs.traces import latent_sites, plate_nesting
from ppl_lvm.testing.exact_programs import ENUMERABLE, LocalBeforeGlobalProgram
from ppl_lvm.training.preparation import prepare_pair

GUIDES = [name for name in guides.__all__ if name not in ("label_free", "AutoGuide")]
# There the guide draws a global site from the rows: Pyro's objective omits terms that it needs.
EXACT = [program for program in ENUMERABLE if program is not LocalBeforeGlobalProgram]
SMOKE = [("BernoulliVAE", "AmortizedCategorical"), ("VAE", "AmortizedNormal")]


class DirichletProcess(nn.Module):
    """A mixture of N(mean, 1): global sticks and means, local assignments in the guide."""

    def __init__(self, rows: int, components: int = 5) -> None:
        super().__init__()
        self.x, self.components = torch.linspace(-6.0, 6.0, rows), components
        self.a = nn.Parameter(torch.zeros(components - 1))
        self.loc = nn.Parameter(torch.linspace(-4.0, 4.0, components))
        self.logits = nn.Parameter(torch.zeros(rows, components))

    def model(self, x: Tensor) -> None:
        with pyro.plate("sticks", self.components - 1, dim=-1):
            v = pyro.sample("v", Beta(1.0, 1.5))
        with pyro.plate("components", self.components, dim=-1):
            mean = pyro.sample("mean", Normal(0.0, 5.0))
        one = v.new_ones((*v.shape[:-1], 1))
        weights = torch.cat([v, one], -1) * torch.cat([one, (1 - v).cumprod(-1)], -1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(weights.unsqueeze(-2)))
            means = mean.expand(*z.shape[:-1], self.components).gather(-1, z)
            pyro.sample("x", Normal(means, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("sticks", self.components - 1, dim=-1):
            pyro.sample("v", Beta(self.a.exp(), 1.0))
        with pyro.plate("components", self.components, dim=-1):
            pyro.sample("mean", Normal(self.loc, 0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Categorical(logits=self.logits))


@dataclass(frozen=True)
class Subject:
    """A pair with its parameters, its default objective, and the objective of Pyro."""

    name: str
    model: Any
    guide: Any
    batch: tuple[Tensor, ...]
    leaves: Mapping[str, Tensor]
    default: ELBO
    peer: ELBO
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext


def bundled(model: str, guide: str) -> Subject:
    """A bundled pair on its example batch.

    Raises:
        ValueError: the guide refuses the model.
    """
    batch = getattr(models, model).example_batch(1)
    pyro.set_rng_seed(0)
    program = ModelFactory(getattr(models, model)).make(batch)
    family = GuideFactory(getattr(guides, guide)).make(program, batch)
    pair, summed = prepare_pair(program, family, None, batch, load_data(batch))
    with pair.scope():
        peer = _peer(pair.objective, summed, pair.model, batch)
    return Subject(
        name=f"{model}, {guide}",
        model=pair.model,
        guide=pair.guide,
        batch=batch,
        leaves=pair.unconstrained_parameters,
        default=pair.objective,
        peer=peer,
        scope=pair.scope,
    )


def exact(program: Any) -> Subject:
    """A program of `exact_programs`, or a Dirichlet process."""
    batch = (program.x,)
    with torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(program.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(program.model, guide_trace)).get_trace(*batch)
    default = objectives.objective(objectives.default_objective(model_trace, guide_trace))
    summed = latent_sites(model_trace).keys() - latent_sites(guide_trace)
    leaves = {str(i): leaf for i, leaf in enumerate(program.parameters())}
    name = f"{type(program).__name__}, {len(program.x)} rows"
    peer = _peer(default, summed, program.model, batch)
    return Subject(name, program.model, program.guide, batch, leaves, default, peer)


def _peer(default: ELBO, summed: Any, model: Any, batch: tuple[Tensor, ...]) -> ELBO:
    if not summed:
        return Trace_ELBO(default.num_particles)
    with torch.no_grad(), poutine.block():
        nesting = plate_nesting(poutine.trace(model).get_trace(*batch))
    return TraceEnum_ELBO(default.num_particles, max_plate_nesting=nesting)


def subjects(smoke: bool) -> Iterator[Subject]:
    """All pairs; guides that refuse a model are left out."""
    for rows in (20,) if smoke else (20, 200, 1000):
        yield exact(DirichletProcess(rows))
    for program in EXACT[:1] if smoke else EXACT:
        yield exact(program(4))
    names = [
        (m, g)
        for m in models.__all__
        for g in GUIDES
        if hasattr(getattr(models, m), "example_batch")
    ]
    for model, guide in SMOKE if smoke else names:
        try:
            yield bundled(model, guide)
        except Exception:  # the guide refuses this model
            continue


def gradient_step(subject: Subject, objective: ELBO) -> Callable[..., float]:
    """A function that adds a gradient to the parameters' `.grad` and returns the loss.

    `loss_and_grads` of Pyro takes no gradient of parameters that no site announces.
    """

    def step(*batch: Tensor) -> float:
        loss = objective.differentiable_loss(subject.model, subject.guide, *batch)
        loss.backward()
        return float(loss)

    return step


def variance(subject: Subject, objective: ELBO, repeats: int, seed: int) -> tuple[float, float]:
    """Σ Var g over all parameters, and its standard error."""
    step = gradient_step(subject, objective)
    samples.gradient(step, subject.batch, subject.leaves)  # analyzes the pair
    step = samples.steady(step, objective)
    torch.manual_seed(seed)
    draws, _ = samples.sample(step, subject.batch, subject.leaves, repeats)
    square = (draws.double() - draws.double().mean(0)).square().sum(1) * repeats / (repeats - 1)
    return square.mean().item(), square.std().item() / repeats**0.5


def compare(subject: Subject, *, repeats: int = 60, rounds: int = 10, seed: int = 0) -> Row:
    """Variance and time of both objectives."""
    both = {"default": subject.default, "Pyro": subject.peer}
    with harness.quiet(), subject.scope():
        (ours, error), (theirs, their_error) = (
            variance(subject, objective, repeats, seed) for objective in both.values()
        )
        calls: dict[str, Callable[[], object]] = {
            by: partial(gradient_step(subject, objective), *subject.batch)
            for by, objective in both.items()
        }
        times = interleaved(calls, rounds=rounds, warmup=1, seed=seed)
    ms, their_ms = (1000 * median(times[by]) for by in both)
    ratio = ours / theirs if theirs else math.nan
    slack = 5 * math.hypot(error, their_error) + 1e-9 * theirs
    return {
        "pair": subject.name,
        "default": objectives.record_text(subject.default),
        "peer": type(subject.peer).__name__,
        "variance": ours,
        "±": error,
        "peer's": theirs,
        "± ": their_error,
        "× variance": ratio,
        "ms": ms,
        "peer's ms": their_ms,
        "× cost": ratio * ms / their_ms,
        "verdict": "more variance" if ours > theirs + slack else "",
    }


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0, repeats: Count = 60
) -> Result:
    """Compare on all pairs, with `repeats` gradients each."""
    repeats, rounds = (4, 1) if smoke else (repeats, 5)
    with samples.local_parameters():
        rows = [
            compare(subject, repeats=repeats, rounds=rounds, seed=seed)
            for subject in subjects(smoke)
        ]
    return harness.publish(
        "variance",
        __doc__ or "",
        rows,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Ratios of variances at equal particles and at equal time."""
    figure, (axes,) = harness.new_figure(6, 1 + 0.15 * len(rows))
    for key, marker in (("× variance", "o"), ("× cost", "x")):
        axes.plot([row[key] for row in rows], range(len(rows)), marker, label=key)
    axes.axvline(1.0, color="black", linewidth=0.5)
    axes.set_yticks(range(len(rows)), [row["pair"] for row in rows], fontsize=6)
    axes.set(xscale="log", xlabel="default over Pyro's objective")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    harness.command(run)
