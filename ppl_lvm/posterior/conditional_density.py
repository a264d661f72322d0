"""Pointwise densities given the global latents.

For draws θ_s ~ q of the guide's global latents, in nats:

    log_lik   log p(x_n | θ_s),  marginal over local latents,
    log_p     log p(x, θ_s),
    log_q     log q(θ_s).

Enumerated sites shared by all rows are summed out given the other rows (`global_states`): log_lik
is then log p(x_n | x_-n, θ_s). Where the guide has no local latents, all draws run at once under a
particle plate. Local latents are integrated by importance weights of K fresh draws per θ_s, one θ_s
at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import (
    ReplayValues,
    Sites,
    is_scored,
    log_prob,
    plate_dim,
    temper,
    trace_program,
)
from ppl_lvm.posterior.global_states import global_states, leave_row_out, require_same_states
from ppl_lvm.programs.row_plates import row_plates

LOCAL_PARTICLES = 64
CHUNK_CELLS = 2**19  # log-likelihoods computed at once


@dataclass(frozen=True)
class GlobalDraws:
    """S draws θ_s ~ q of the guide's global latents.

    Attributes:
        values: site -> (S, plates, event), with the plates of a single run.
        plate_dims: site -> number of its plate dimensions.
        count: S.
    """

    values: Tensors
    plate_dims: Mapping[str, int]
    count: int

    def select(self, index: slice | Tensor) -> "GlobalDraws":
        """These draws."""
        values = {name: value[index] for name, value in self.values.items()}
        return replace(self, values=values, count=len(torch.arange(self.count)[index]))

    def join(self, values: Tensors, plate_dims: Mapping[str, int]) -> "GlobalDraws":
        """The draws with further sites."""
        joined = {**self.values, **values}
        return replace(self, values=joined, plate_dims={**self.plate_dims, **plate_dims})

    def under_particles(self, nesting: int) -> dict[str, Tensor]:
        """Site -> (S, all `nesting` plates, event)."""
        return {
            name: value.reshape(
                len(value), *[1] * (nesting - self.plate_dims[name]), *value.shape[1:]
            )
            for name, value in self.values.items()
        }

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for s in range(self.count):
            yield {name: value[s] for name, value in self.values.items()}


@dataclass(frozen=True)
class ConditionalDensities:
    """Densities under S draws θ_s, and C joint states of the enumerated sites shared by all rows.

    Attributes:
        log_lik: log p(x_n | θ_s) (S, N); given the other rows x_-n where rows share enumerated
            sites; given the training rows where these are new rows.
        log_p: log p(x, θ_s) (S,); for new rows log p(y | x, θ_s) of all of them together.
        log_q: log q(θ_s) (S,).
        log_posterior: log p(c | x, θ_s) (S, C).
        states: the C joint states.
    """

    log_lik: Tensor
    log_p: Tensor
    log_q: Tensor
    log_posterior: Tensor
    states: GlobalDraws


@dataclass(frozen=True)
class PointwiseDensities:
    """Densities under S draws θ_s ~ q.

    Attributes:
        log_lik: log p(x_n | θ_s) (S, N); see `ConditionalDensities`.
        log_p: log p(x, θ_s) (S,).
        log_q: log q(θ_s) (S,).
        log_lik_of_states: log p(x_n | θ_s, c_s) (S, N) with c_s ~ p(c | x, θ_s), the states behind
            the replicated data; `log_lik` itself where rows share no enumerated site.
        draws: θ_s, with c_s where rows share enumerated sites.
    """

    log_lik: Tensor
    log_p: Tensor
    log_q: Tensor
    log_lik_of_states: Tensor
    draws: GlobalDraws


def pointwise_densities(
    model: Program, guide: Program, batch: Batch, num_draws: int
) -> PointwiseDensities:
    """The densities of every row under draws of the global latents.

    Raises:
        CannotSayError: the model has no global latents, or log p(x) has no terms by row.
    """
    structure = analyze_for_particles(model, guide, batch, {}, num_draws)
    if structure.data_plate is not None or not (structure.latents or structure.enumerated):
        raise CannotSayError(
            "The model has no global latent: its parameters are points that were fitted to every "
            "row. Evaluate it on held-out rows."
        )
    draws = draw_globals(guide, batch, num_draws, structure)
    densities = conditional_densities(model, guide, batch, draws, structure=structure)
    log_lik_of_states = densities.log_lik
    if densities.states.values:
        chosen = torch.multinomial(densities.log_posterior.exp(), 1)[:, 0]
        states = densities.states.select(chosen)
        draws = draws.join(states.values, states.plate_dims)
        given_states = conditional_densities(model, guide, batch, draws, structure=structure)
        log_lik_of_states = given_states.log_lik
    return PointwiseDensities(
        densities.log_lik, densities.log_p, densities.log_q, log_lik_of_states, draws
    )


def conditional_densities(
    model: Program,
    guide: Program,
    batch: Batch,
    draws: GlobalDraws,
    *,
    structure: PairStructure | None = None,
    new_rows: bool = False,
    train: ConditionalDensities | None = None,
    num_particles: int = LOCAL_PARTICLES,
) -> ConditionalDensities:
    """Densities of the rows in `batch` at known global latents.

    Args:
        draws: of the guide's global latents, and of any enumerated sites: these are not summed out.
        structure: of the pair (`analyze_for_particles`).
        new_rows: the rows are not those that θ was drawn for: no prior of θ enters.
        train: densities of the training rows at the same draws, for new rows that share enumerated
            sites with them.
        num_particles: K of the local latents.

    Raises:
        CannotSayError: log p(x) has no terms by row.
    """
    if structure is None:
        structure = analyze_for_particles(model, guide, batch, {}, 2)
    states = GlobalDraws(*global_states(model, guide, batch, draws.values))
    if train is not None:
        require_same_states(train.states.values, states.values)
    chunk = max(1, CHUNK_CELLS // (len(batch[0]) * states.count))
    local = bool(structure.latents.keys() - draws.values.keys())
    K = num_particles if local else 1
    at_theta: PairStructure | None = None
    parts = []
    for start in range(0, draws.count, chunk):
        some = draws.select(slice(start, start + chunk))
        product = _with_states(some, states)
        if local or not structure.vectorized:
            at_theta = at_theta or local_structure(model, guide, batch, next(iter(product)), K)
            tables = _sequential_tables(model, guide, batch, product, at_theta, K)
        else:
            tables = _vectorized_tables(model, guide, batch, structure, product)
        rows, log_prior, log_q = (
            t.double().reshape(some.count, states.count, *t.shape[1:]) for t in tables
        )
        if train is not None:
            log_prior = train.log_posterior[start : start + chunk]
        elif new_rows:
            log_prior = torch.zeros_like(log_prior)
        parts.append(_sum_states(rows, log_prior, log_q[:, 0], new_rows))
    log_lik, log_p, log_q, log_posterior = (torch.cat(p) for p in zip(*parts, strict=True))
    return ConditionalDensities(log_lik, log_p, log_q, log_posterior, states)


def _with_states(draws: GlobalDraws, states: GlobalDraws) -> GlobalDraws:
    """Each draw with each joint state: S·C draws."""
    repeated = draws.select(torch.arange(draws.count).repeat_interleave(states.count))
    cycled = states.select(torch.arange(states.count).repeat(draws.count))
    return repeated.join(cycled.values, cycled.plate_dims)


def _sum_states(
    rows: Tensor, log_prior: Tensor, log_q: Tensor, new_rows: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the joint states of log p(x_n | θ_s, c) (S, C, N) and log p(θ_s, c) (S, C)."""
    log_joint = log_prior + rows.sum(-1)
    log_p = log_joint.logsumexp(1)
    if rows.shape[1] == 1:
        return rows[:, 0], log_p, log_q, torch.zeros_like(log_prior)
    if new_rows:
        log_lik = (log_prior[..., None] + rows).logsumexp(1)
    else:
        log_lik = log_p[:, None] - leave_row_out(log_prior, rows)
    return log_lik, log_p, log_q, log_joint - log_p[:, None]


def _vectorized_tables(
    model: Program, guide: Program, batch: Batch, structure: PairStructure, draws: GlobalDraws
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_n | θ_s) (S, N), log p(θ_s) and log q(θ_s) (S,), all draws under a particle plate.

    Enumerated sites among the draws are fixed at their values.
    """
    N, S = len(batch[0]), draws.count
    enumerated = structure.enumerated - draws.values.keys()
    structure = replace(structure, data_plate=structure.row_plates, enumerated=enumerated)
    if S == 1:  # a single draw has no particle dimension
        draws = draws.select(torch.zeros(2, dtype=torch.long))
    values, count = draws.under_particles(structure.nesting), max(2, S)
    guide_sites, model_sites = run_pair(model, guide, batch, {}, structure, count, values=values)
    tables = tabulate(guide_sites, model_sites, structure, True)
    rows, prior = torch.zeros(count, N), torch.zeros(count)
    by_row = False
    for name, value in tables.log_p.items():
        if plate_dim(model_sites[name], structure.row_plates) is None:
            prior = prior + value.sum(1)
        else:
            rows, by_row = rows + value, True
    if tables.marginal is not None:
        if tables.marginal.shape[1] != N:
            raise CannotSayError(_no_terms(enumerated))
        rows, by_row = rows + tables.marginal, True
    if not by_row:
        raise CannotSayError(_no_terms(frozenset()))
    log_q = sum((v.sum(1) for v in tables.log_q.values()), torch.zeros(count))
    return rows[:S], prior[:S], log_q[:S]


def _sequential_tables(
    model: Program,
    guide: Program,
    batch: Batch,
    draws: GlobalDraws,
    at_theta: PairStructure,
    num_particles: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_vectorized_tables`, each draw with K fresh draws of the local latents."""
    rows, log_prior, log_q = [], [], []
    for theta in draws:
        rows.append(marginal_log_lik(model, guide, batch, theta, num_particles, at_theta))
        log_prior.append(global_log_prob(model, theta, batch))
        log_q.append(global_log_prob(guide, theta, batch))
    return torch.stack(rows), torch.stack(log_prior), torch.stack(log_q)


def _no_terms(enumerated: frozenset[str]) -> str:
    reason = (
        f"enumerated sites outside the plate over rows connect them: {sorted(enumerated)}"
        if enumerated
        else "no observed site is inside a plate over rows"
    )
    return f"log p(x) has no terms by row: {reason}."


def draw_globals(
    guide: Program, batch: Batch, num_draws: int, structure: PairStructure | None = None
) -> GlobalDraws:
    """θ_s ~ q; under a particle plate if `structure` allows it and no latent is local."""
    single = _global_sites(guide, batch)
    latents = set() if structure is None else structure.latents.keys()
    if structure is not None and structure.vectorized and latents <= single.keys():
        count = max(2, num_draws)  # a single draw has no particle dimension
        drawn = trace_program(guide, batch, {}, particles=count, nesting=structure.nesting)
        values = {
            n: drawn[n]["value"]
            .expand(count, *drawn[n]["value"].shape[1:])[:num_draws]
            .reshape(num_draws, *site["value"].shape)
            for n, site in single.items()
        }
    else:
        draws = [single] + [_global_sites(guide, batch) for _ in range(num_draws - 1)]
        values = {n: torch.stack([sites[n]["value"] for sites in draws]) for n in single}
    return GlobalDraws(values, {n: len(s["fn"].batch_shape) for n, s in single.items()}, num_draws)


def as_global_draws(guide: Program, batch: Batch, draws: Sequence[Tensors]) -> GlobalDraws:
    """S draws of global latents, site -> value of a single run, put together."""
    sites = _global_sites(guide, batch)
    values = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    return GlobalDraws(values, {n: len(sites[n]["fn"].batch_shape) for n in values}, len(draws))


def global_latents(guide: Program, batch: Batch) -> frozenset[str]:
    """The guide's latents outside the plate over rows."""
    with preserve_rng():
        return frozenset(_global_sites(guide, batch))


def _global_sites(guide: Program, batch: Batch) -> Sites:
    """The guide's latent sites outside the plate over rows, of one run."""
    plates = row_plates(guide, batch=batch).names
    sites = trace_program(guide, batch, {}, particles=None, nesting=0)
    return {
        n: s for n, s in sites.items() if not site_is_subsample(s) and plate_dim(s, plates) is None
    }


def joint_densities(
    model: Program, guide: Program, batch: Batch, structure: PairStructure, draws: GlobalDraws
) -> tuple[Tensor, Tensor]:
    """log p(x, θ_s) and log q(θ_s) (S,) of a guide without local latents, under a particle plate.

    Unlike `conditional_densities` it needs no terms by row.
    """
    S = draws.count
    if S == 1:  # a single draw has no particle dimension
        draws = draws.select(torch.zeros(2, dtype=torch.long))
    values = draws.under_particles(structure.nesting)
    sites = run_pair(model, guide, batch, {}, structure, max(2, S), values=values)
    tables = tabulate(*sites, structure, True)
    log_p = sum((t.double().sum(1) for t in tables.log_p.values()), torch.zeros(()))
    log_q = sum((t.double().sum(1) for t in tables.log_q.values()), torch.zeros(()))
    if tables.marginal is not None:
        log_p = log_p + tables.marginal.double().sum(1)
    return log_p[:S], log_q[:S]


def marginal_log_lik(
    model: Program,
    guide: Program,
    batch: Batch,
    theta: Tensors,
    num_particles: int = LOCAL_PARTICLES,
    structure: PairStructure | None = None,
) -> Tensor:
    """log p(x_n | θ) (N,), the guide's local latents integrated by K importance-weighted draws.

    `structure` is the result of `local_structure`, which is the same for all θ.

    Raises:
        CannotSayError: log p(x | θ) has no terms by row.
    """
    programs = condition_on_globals(model, guide, theta)
    log_w = log_weights(*programs, *batch, num_particles=num_particles, structure=structure)
    if log_w.shape[1] != len(batch[0]):
        raise CannotSayError(_no_terms(structure.enumerated if structure else frozenset()))
    return log_w.logsumexp(0) - math.log(len(log_w))


def condition_on_globals(model: Program, guide: Program, theta: Tensors) -> tuple[Program, Program]:
    """The programs with the global latents fixed at θ and hidden: only local ones remain."""
    model, guide = (
        poutine.block(poutine.condition(p, data=dict(theta)), hide=list(theta))
        for p in (model, guide)
    )
    return model, guide


def local_structure(
    model: Program, guide: Program, batch: Batch, theta: Tensors, num_particles: int
) -> PairStructure:
    """The structure of the pair conditioned on the global latents."""
    programs = condition_on_globals(model, guide, theta)
    return analyze_for_particles(*programs, batch, {}, num_particles)


def global_log_prob(program: Program, theta: Tensors, batch: Batch) -> Tensor:
    """Log-density () of a program's sites outside the plate over rows, at global latents θ."""
    plates = row_plates(program, batch=batch).names
    values = ReplayValues(theta, recompute_points=True)
    sites = trace_program(program, batch, {}, particles=None, nesting=0, replay=values)
    total = torch.zeros(())
    for site in sites.values():
        if is_scored(site) and plate_dim(site, plates) is None:
            total = total + temper(log_prob(site), site["scale"], site["mask"]).sum()
    return total
