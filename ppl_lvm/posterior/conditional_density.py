"""Pointwise densities given the global latents.

For draws θ_s ~ q of the guide's global latents, in nats:

    log_lik   log p(x_n | θ_s),  marginal over local latents,
    log_p     log p(x, θ_s),
    log_q     log q(θ_s).

Enumerated sites shared by all rows are summed out given the other rows (`global_states`): log_lik
is then log p(x_n | x_-n, θ_s). Local latents are integrated by importance weights of K fresh draws
per θ_s. All draws run at once under a particle plate where the programs allow it.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import (
    ReplayValues,
    is_scored,
    log_prob,
    plate_dim,
    temper,
    trace_program,
)
from ppl_lvm.posterior.global_states import (
    GlobalDraws,
    condition_on_globals,
    draw_globals,
    global_latents,
    global_state_sites,
    global_states,
    leave_row_out,
    no_terms,
    require_same_states,
    structure_given_globals,
)
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.row_plates import row_plates

LOCAL_PARTICLES = 64
MOST_COPIES = 16  # of a weighted row's draws of local latents
LOCAL_SHARE = 5  # fewer draws of global latents by this factor where each needs local ones
CHUNK_CELLS = 2**19  # log-likelihoods computed at once
LOCAL_CELLS = 2**17  # of them with draws of local latents, which may be wide


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
            "row. Evaluate it on held-out rows.",
            verdict="not applicable",
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
    weights: Tensor | None = None,
) -> ConditionalDensities:
    """Densities of the rows in `batch` at known global latents.

    Args:
        draws: of the guide's global latents, and of any enumerated sites: these are not summed out.
        structure: of the pair (`analyze_for_particles`).
        new_rows: the rows are not those that θ was drawn for: no prior of θ enters.
        train: densities of the training rows at the same draws, for new rows that share enumerated
            sites with them.
        num_particles: K of the local latents.
        weights: of the rows (N,): a row counts in log p(x, θ_s) as w_n equal rows, each with draws
            of local latents. `log_lik` is that of one of them.

    Raises:
        CannotSayError: log p(x) has no terms by row.
    """
    if structure is None:
        structure = analyze_for_particles(model, guide, batch, {}, 2)
    states = GlobalDraws(*global_states(model, guide, batch, draws.values))
    if train is not None:
        require_same_states(train.states.values, states.values)
    local = structure.latents.keys() - draws.values.keys()
    K = num_particles if local else 1
    copies = _copies(weights if local else None, len(batch[0]))
    cells = LOCAL_CELLS // (K * len(copies)) if local else CHUNK_CELLS
    chunk = max(1, cells // (len(batch[0]) * states.count))
    at_theta: PairStructure | None = None
    parts = []
    for start in range(0, draws.count, chunk):
        some = draws.select(slice(start, start + chunk))
        product = _with_states(some, states)
        if local or not structure.vectorized:
            at_theta = at_theta or structure_given_globals(model, guide, batch, product, local, K)
        if structure.vectorized:
            tables = _vectorized_tables(model, guide, batch, structure, product, K, copies)
        else:
            assert at_theta is not None
            tables = _sequential_tables(model, guide, batch, product, at_theta, K, copies)
        rows, log_prior, log_q = (
            t.double().reshape(some.count, states.count, *t.shape[1:]) for t in tables
        )
        if train is not None:
            log_prior = train.log_posterior[start : start + chunk]
        elif new_rows:
            log_prior = torch.zeros_like(log_prior)
        parts.append(_sum_states(rows, log_prior, log_q[:, 0], new_rows, weights))
    log_lik, log_p, log_q, log_posterior = (torch.cat(p) for p in zip(*parts, strict=True))
    return ConditionalDensities(log_lik, log_p, log_q, log_posterior, states)


def _with_states(draws: GlobalDraws, states: GlobalDraws) -> GlobalDraws:
    """Each draw with each joint state: S·C draws."""
    repeated = draws.select(torch.arange(draws.count).repeat_interleave(states.count))
    cycled = states.select(torch.arange(states.count).repeat(draws.count))
    return repeated.join(cycled.values, cycled.plate_dims)


def _sum_states(
    rows: Tensor, log_prior: Tensor, log_q: Tensor, new_rows: bool, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the joint states of log p(x_n | θ_s, c) (S, C, N) and log p(θ_s, c) (S, C)."""
    w = rows.new_ones(rows.shape[-1]) if weights is None else weights.to(rows)
    log_joint = log_prior + rows.masked_fill(w == 0, 0.0).mul(w).sum(-1)
    log_p = log_joint.logsumexp(1)
    if rows.shape[1] == 1:
        return rows[:, 0], log_p, log_q, torch.zeros_like(log_prior)
    if new_rows:
        log_lik = (log_prior[..., None] + rows).logsumexp(1)
    else:
        log_lik = log_p[:, None] - leave_row_out(log_prior, rows, w)
    return log_lik, log_p, log_q, log_joint - log_p[:, None]


def _vectorized_tables(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    draws: GlobalDraws,
    num_particles: int,
    copies: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_n | θ_s) (S, N), log p(θ_s) and log q(θ_s) (S,), all draws under a particle plate.

    Enumerated sites among the draws are fixed at their values. Sites in the plate over rows that
    are not among them are drawn K times for each copy of the rows (`_copies`).
    """
    N, S, K = len(batch[0]), draws.count, num_particles * len(copies)
    enumerated = structure.enumerated - draws.values.keys()
    structure = replace(structure, data_plate=structure.row_plates, enumerated=enumerated)
    count = max(2, S * K)  # a single draw has no particle dimension
    index = torch.arange(S).repeat_interleave(K)
    draws = draws.select(index if S * K > 1 else torch.zeros(2, dtype=torch.long))
    values = draws.under_particles(structure.nesting)
    guide_sites, model_sites = run_pair(model, guide, batch, {}, structure, count, values=values)
    tables = tabulate(guide_sites, model_sites, structure, True)
    rows, prior, log_q = torch.zeros(count, N), torch.zeros(count), torch.zeros(count)
    by_row = False
    for name, value in tables.log_p.items():
        if plate_dim(model_sites[name], structure.row_plates) is None:
            prior = prior + value.sum(1)
        else:
            rows, by_row = rows + value, True
    for name, value in tables.log_q.items():
        if plate_dim(guide_sites[name], structure.row_plates) is None:
            log_q = log_q + value.sum(1)
        else:
            rows = rows - value
    if tables.marginal is not None:
        if tables.marginal.shape[1] != N:
            raise CannotSayError(no_terms(enumerated))
        rows, by_row = rows + tables.marginal, True
    if not by_row:
        raise CannotSayError(no_terms(frozenset()))
    return (
        _marginalize(rows[: S * K].reshape(S, K, N), copies),
        prior[: S * K : K],
        log_q[: S * K : K],
    )


def _copies(weights: Tensor | None, N: int) -> Tensor:
    """Shares (G, N) of G independent estimates of log p(x_n | θ), which add up to 1 for each row.

    A row of weight w is w equal rows, each with its own estimate p̂ of p(x_n | θ): the power p̂^w
    of a single one has a larger mean than p(x_n | θ)^w. More than 16 copies share estimates.
    """
    if weights is None:
        return torch.ones(1, N)
    G = max(1, min(MOST_COPIES, math.ceil(float(weights.max()))))
    each = weights.cpu().clamp(max=G) - torch.arange(G)[:, None]
    shares = each.clamp(0, 1)
    first = torch.zeros_like(shares)
    first[0] = 1.0
    return torch.where(weights.cpu() > 0, shares / shares.sum(0).clamp(min=1e-12), first).float()


def _marginalize(log_w: Tensor, copies: Tensor) -> Tensor:
    """Estimates of log p(x_n | θ) (..., N) from log-weights (..., G K, N)."""
    groups = log_w.unflatten(-2, (len(copies), -1))
    estimates = groups.logsumexp(-2) - math.log(groups.shape[-2])  # (..., G, N)
    shares = copies.to(estimates)
    return estimates.masked_fill(shares == 0, 0.0).mul(shares).sum(-2)


def _sequential_tables(
    model: Program,
    guide: Program,
    batch: Batch,
    draws: GlobalDraws,
    at_theta: PairStructure,
    num_particles: int,
    copies: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_vectorized_tables`, each draw with K fresh draws of the local latents."""
    rows, log_prior, log_q = [], [], []
    for theta in draws:
        programs = condition_on_globals(model, guide, theta)
        K = num_particles * len(copies)
        log_w = log_weights(*programs, *batch, num_particles=K, structure=at_theta)
        if log_w.shape[1] != len(batch[0]):
            raise CannotSayError(no_terms(at_theta.enumerated))
        rows.append(_marginalize(log_w, copies))
        log_prior.append(global_log_prob(model, theta, batch))
        log_q.append(global_log_prob(guide, theta, batch))
    return torch.stack(rows), torch.stack(log_prior), torch.stack(log_q)


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


def predictive_densities(
    pair: ModelGuidePair,
    training: Batch,
    batch: Batch,
    num_particles: int,
    *,
    weights: Tensor | None = None,
    training_weights: Tensor | None = None,
) -> tuple[ConditionalDensities, bool]:
    """Densities of new rows given draws of the posterior; True if there is nothing to draw.

    θ_s ~ q given the training rows: a guide that reads data must not read the new ones. Local
    latents are marginalized. Enumerated sites that all rows share are averaged over their posterior
    given the training rows.

    Raises:
        CannotSayError: log p(y) has no terms by row.
    """
    model, guide = pair.model, pair.guide
    structure = analyze_for_particles(model, guide, training, {}, 2)
    exact = not structure.latents
    local = not structure.latents.keys() <= global_latents(guide, training)
    count = 1 if exact else max(1, num_particles // LOCAL_SHARE) if local else num_particles
    draws, K = draw_globals(guide, training, count, structure), local_particles(structure)
    training_densities = None
    if global_state_sites(model, guide, training):
        training_densities = conditional_densities(
            model,
            guide,
            training,
            draws,
            structure=structure,
            num_particles=K,
            weights=training_weights,
        )
    new = conditional_densities(
        model,
        guide,
        batch,
        draws,
        new_rows=True,
        train=training_densities,
        num_particles=K,
        weights=weights,
    )
    return new, exact


def local_particles(structure: PairStructure) -> int:
    """K of the local latents given each draw of the global ones; fewer where they run in a loop."""
    return LOCAL_PARTICLES if structure.vectorized else LOCAL_PARTICLES // 8
