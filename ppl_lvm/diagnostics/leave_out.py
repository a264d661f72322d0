"""log p(x_n | θ_s) of every datum under draws θ_s of the global latents.

Marginal over local latents: discrete ones that the model enumerates exactly, others by importance
weights of K fresh draws a θ_s. The conditional log p(x_n | z_n) with z_n ~ q(z_n | x_n) has seen
x_n, and leave-one-out prediction from it is wrong.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.diagnostics.finding import CannotSayError
from ppl_lvm.particles import log_weights, plan_pair
from ppl_lvm.particles.plan import Plan, Program
from ppl_lvm.particles.tables import run_pair, tabulate
from ppl_lvm.particles.traces import Sites, plate_dim, trace_program
from ppl_lvm.subsample import DATA_PLATE

LOCAL_PARTICLES = 64


def pointwise(
    model: Program, guide: Program, batch: tuple[Any, ...], num_draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_n | θ_s) (S, N), log p(x, θ_s) (S,), log q(θ_s) (S,)."""
    plan = plan_pair(model, guide, batch, {}, num_draws)
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
    model: Program, guide: Program, batch: tuple[Any, ...], plan: Plan, num_draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All draws under a particle plate, the data's dimension kept apart."""
    plan = replace(plan, data_plate=DATA_PLATE)
    N, chunk = len(batch[0]), max(1, 2**22 // len(batch[0]) // 8)
    l, log_p, log_q = [], [], []
    for start in range(0, num_draws, chunk):
        size = max(2, min(chunk, num_draws - start))
        tables = tabulate(*run_pair(model, guide, batch, {}, plan, size), plan, True)
        each = torch.zeros(size, N)
        shared = torch.zeros(size)
        for name, value in tables.log_p.items():
            if value.shape[1] == N and name not in tables.log_q:
                each = each + value
            else:
                shared = shared + value.sum(1)
        if tables.marginal is not None:
            each = each + tables.marginal
        l.append(each)
        log_p.append(shared + each.sum(1))
        log_q.append(sum((v.sum(1) for v in tables.log_q.values()), torch.zeros(size)))
    S = num_draws
    return torch.cat(l)[:S], torch.cat(log_p)[:S], torch.cat(log_q)[:S]


def _one_by_one(
    model: Program, guide: Program, batch: tuple[Any, ...], num_draws: int, local: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Each draw of the globals with K fresh draws of the local latents."""
    N, K = len(batch[0]), LOCAL_PARTICLES if local else 1
    l, log_p, log_q = [], [], []
    for _ in range(num_draws):
        sites: Sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        shared = {n: s["value"] for n, s in sites.items() if n not in local}
        programs = [
            poutine.block(poutine.condition(p, data=shared), hide=list(shared))
            for p in (model, guide)
        ]
        log_w = log_weights(*programs, *batch, num_particles=K)
        row = log_w.expand(-1, N).logsumexp(0) - math.log(len(log_w))
        l.append(row)
        log_p.append(_score(model, shared, batch) + row.sum())
        log_q.append(_score(guide, shared, batch))
    return torch.stack(l), torch.stack(log_p), torch.stack(log_q)


def _score(program: Program, values: dict[str, Tensor], batch: tuple[Any, ...]) -> Tensor:
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*batch)
    total = torch.zeros(())
    for name, value in values.items():
        total = total + trace.nodes[name]["fn"].log_prob(value).sum()
    return total
