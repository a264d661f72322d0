"""TODO."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import ReplayValues, Sites, plate_dim, trace_program
from ppl_lvm.posterior.simulation import observed_places
from ppl_lvm.programs.minibatch import DATA_PLATE

LOCAL_PARTICLES = 64


@dataclass(frozen=True)
class Pointwise:
    """Of S draws θ_s ~ q.

    Attributes:
        l: log p(x_n | θ_s) (S, N).
        log_p, log_q: log p(x, θ_s), log q(θ_s), (S,).
        sign: observed site -> (S, N, P) sign of x_np − x_rep,snp, evenly spaced columns where
            there would be too many; empty where data cannot be drawn from the model.
    """

    l: Tensor
    log_p: Tensor
    log_q: Tensor
    sign: dict[str, Tensor]


def pointwise(model: Program, guide: Program, batch: tuple[Any, ...], num_draws: int) -> Pointwise:
    """The densities of every datum under draws of the global latents."""
    plan = analyze_for_particles(model, guide, batch, {}, num_draws)
    if plan.data_plate is not None or not plan.latents:
        raise CannotSayError(
            "The model has no global latent: its parameters are points that have seen every "
            "datum. Judge it on held-out rows."
        )
    sites = trace_program(guide, batch, {}, particles=None, nesting=0)
    local = [n for n in plan.latents if plate_dim(sites[n], DATA_PLATE) is not None]
    if local or not plan.vectorized:
        return _one_by_one(model, guide, batch, num_draws, local)
    return _at_once(model, guide, batch, plan, num_draws)


def _at_once(
    model: Program, guide: Program, batch: tuple[Any, ...], plan: PairStructure, num_draws: int
) -> Pointwise:
    """All draws under a particle plate, the data's dimension kept apart."""
    data = _data(model, batch)
    signs: dict[str, list[Tensor]] = {name: [] for name in data}
    chunk = max(1, 2**22 // len(batch[0]) // 8)
    parts = []
    for start in range(0, num_draws, chunk):
        size = max(2, min(chunk, num_draws - start))
        drawn, *scores = score_globals(model, guide, batch, plan, size)
        _compare(data, signs, model, batch, plan, size, drawn)
        parts.append(scores)
    l, log_p, log_q = (torch.cat(each) for each in zip(*parts, strict=True))
    S = num_draws
    return Pointwise(l[:S], log_p[:S], log_q[:S], {n: torch.cat(t)[:S] for n, t in signs.items()})


def score_globals(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    count: int,
    values: Mapping[str, Tensor] | None = None,
) -> tuple[Sites, Tensor, Tensor, Tensor]:
    """Draws of global latents (or `values` (S, plates, event) of them) and, in one run,
    log p(x_n | θ_s) (S, N), log p(x, θ_s) (S,), log q(θ_s) (S,)."""
    plan, N = replace(plan, data_plate=DATA_PLATE), len(batch[0])
    drawn, scored = run_pair(model, guide, batch, {}, plan, count, values=values)
    tables = tabulate(drawn, scored, plan, True)
    each, shared = torch.zeros(count, N), torch.zeros(count)
    for name, value in tables.log_p.items():
        if value.shape[1] == N and name not in tables.log_q:
            each = each + value
        else:
            shared = shared + value.sum(1)
    if tables.marginal is not None:
        each = each + tables.marginal
    log_q = sum((v.sum(1) for v in tables.log_q.values()), torch.zeros(count))
    return drawn, each, shared + each.sum(1), log_q


def _one_by_one(
    model: Program, guide: Program, batch: tuple[Any, ...], num_draws: int, local: list[str]
) -> Pointwise:
    """Each draw of the globals with K fresh draws of the local latents."""
    data = _data(model, batch)
    signs: dict[str, list[Tensor]] = {name: [] for name in data}
    plan = analyze_for_particles(model, guide, batch, {}, 1)
    K = LOCAL_PARTICLES if local else 1
    l, log_p, log_q = [], [], []
    inner: PairStructure | None = None
    for _ in range(num_draws):
        sites: Sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        own = {n: s for n, s in sites.items() if n not in local}
        shared = {n: s["value"] for n, s in own.items()}
        _compare(data, signs, model, batch, plan, None, own)
        inner = inner or plan_given(model, guide, batch, shared, K)
        row = marginal(model, guide, batch, shared, K, inner)
        l.append(row)
        log_p.append(score(model, shared, batch) + row.sum())
        log_q.append(score(guide, shared, batch))
    return Pointwise(
        torch.stack(l),
        torch.stack(log_p),
        torch.stack(log_q),
        {n: torch.cat(t) for n, t in signs.items()},
    )


def global_draws(guide: Program, batch: tuple[Any, ...], num_draws: int) -> list[dict[str, Tensor]]:
    """θ_s ~ q: global site -> value, one dictionary a draw."""
    found = []
    for _ in range(num_draws):
        sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        found.append(
            {
                n: s["value"]
                for n, s in sites.items()
                if not site_is_subsample(s) and plate_dim(s, DATA_PLATE) is None
            }
        )
    return found


def marginal(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    theta: Mapping[str, Tensor],
    num_particles: int = LOCAL_PARTICLES,
    plan: PairStructure | None = None,
) -> Tensor:
    """log p(x_n | θ) (N,), local latents of the guide weighted out by K fresh draws.

    `plan` is what `plan_given` found out once for all θ.
    """
    programs = given(model, guide, theta)
    log_w = log_weights(*programs, *batch, num_particles=num_particles, structure=plan)
    return log_w.expand(-1, len(batch[0])).logsumexp(0) - math.log(len(log_w))


def given(model: Program, guide: Program, theta: Mapping[str, Tensor]) -> tuple[Program, Program]:
    """The programs with the global latents at θ and out of sight: only local ones are left."""
    model, guide = (
        poutine.block(poutine.condition(p, data=dict(theta)), hide=list(theta))
        for p in (model, guide)
    )
    return model, guide


def plan_given(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    theta: Mapping[str, Tensor],
    num_particles: int,
) -> PairStructure:
    """The structure that is left when the global latents are given."""
    return analyze_for_particles(*given(model, guide, theta), batch, {}, num_particles)


def score(program: Program, values: Mapping[str, Tensor], batch: tuple[Any, ...]) -> Tensor:
    """Log-density () of given values of a program's sites; sites that it lacks count nothing."""
    trace = poutine.trace(poutine.condition(program, data=dict(values))).get_trace(*batch)
    total = torch.zeros(())
    for name, value in values.items():
        if name in trace.nodes:  # a guide's auxiliary site is not in the model
            total = total + trace.nodes[name]["fn"].log_prob(value).sum()
    return total


CELLS = 2**27  # comparisons of replicates with data that are kept, a byte each


Floats = NDArray[np.float64]


def _data(model: Program, batch: tuple[Any, ...]) -> dict[str, Tensor]:
    """Observed site -> x; empty where data cannot be drawn from the model."""
    try:
        return {name: batch[i] for name, i in observed_places(model, *batch).items()}
    except CannotSayError:
        return {}


def _compare(
    data: Mapping[str, Tensor],
    signs: dict[str, list[Tensor]],
    model: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    particles: int | None,
    drawn: Sites,
) -> None:
    """Draw one data set under each θ, and add the signs of x − x_rep (S, N, P) to `signs`."""
    if not data:
        return
    values = {n: s["value"] for n, s in drawn.items()}
    free = poutine.uncondition(model)
    sites = trace_program(
        free, batch, {}, particles=particles, nesting=plan.nesting, replay=ReplayValues(values)
    )
    for name, x in data.items():
        x_rep = sites[name]["value"].reshape(particles or 1, len(x), -1)
        difference = _compared(x) - x_rep[..., columns(x)].double()
        signs[name].append(difference.nan_to_num(0.0).sign().to(torch.int8))


def _compared(x: Tensor) -> Tensor:
    """The columns of x (N, ...) that are compared: (N, P)."""
    return x.reshape(len(x), -1)[:, columns(x)].double()


def columns(x: Tensor) -> Tensor:
    """Which columns of x (N, ...) are compared: at most so many that 1,000 draws fit in memory."""
    width = x[0].numel()
    return torch.linspace(0, width - 1, min(width, max(1, CELLS // 1000 // len(x)))).long()
