"""Pointwise densities given the global latents.

For draws θ_s ~ q of the global latents, in nats:

    log_lik   log p(x_n | θ_s),  marginal over local latents,
    log_p     log p(x, θ_s),
    log_q     log q(θ_s).

Where the guide has no local latents, all draws run at once under a particle plate. Local latents
are integrated by importance weights of K fresh draws per θ_s, one θ_s at a time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import ReplayValues, Sites, plate_dim, trace_program
from ppl_lvm.posterior.simulation import observed_arguments
from ppl_lvm.programs.minibatch import DATA_PLATE

LOCAL_PARTICLES = 64
CHUNK_CELLS = 2**19  # log-likelihoods computed at once
SIGN_CELLS = 2**27  # signs of residuals that are stored, a byte each
TYPICAL_DRAWS = 1000


@dataclass(frozen=True)
class PointwiseDensities:
    """Densities under S draws θ_s ~ q.

    Attributes:
        log_lik: log p(x_n | θ_s) (S, N).
        log_p: log p(x, θ_s) (S,).
        log_q: log q(θ_s) (S,).
        residual_signs: observed site -> (S, N, P) sign of x_np − x_rep,snp, of evenly spaced
            columns where there are too many; empty where data cannot be simulated.
    """

    log_lik: Tensor
    log_p: Tensor
    log_q: Tensor
    residual_signs: dict[str, Tensor]


def pointwise_densities(
    model: Program, guide: Program, batch: Batch, num_draws: int
) -> PointwiseDensities:
    """The densities of every row under draws of the global latents.

    Raises:
        CannotSayError: the model has no global latents.
    """
    structure = analyze_for_particles(model, guide, batch, {}, num_draws)
    if structure.data_plate is not None or not structure.latents:
        raise CannotSayError(
            "The model has no global latent: its parameters are points that were fitted to every "
            "row. Evaluate it on held-out rows."
        )
    sites = trace_program(guide, batch, {}, particles=None, nesting=0)
    local = [n for n in structure.latents if plate_dim(sites[n], DATA_PLATE) is not None]
    if local or not structure.vectorized:
        return _sequential_densities(model, guide, batch, num_draws, local)
    return _vectorized_densities(model, guide, batch, structure, num_draws)


def _vectorized_densities(
    model: Program, guide: Program, batch: Batch, structure: PairStructure, num_draws: int
) -> PointwiseDensities:
    """All draws under a particle plate."""
    residuals = _Residuals(model, batch)
    chunk = max(1, CHUNK_CELLS // len(batch[0]))
    parts = []
    for start in range(0, num_draws, chunk):
        size = max(2, min(chunk, num_draws - start))
        sites, *densities = global_log_densities(model, guide, batch, structure, size)
        residuals.add(sites, structure, size)
        parts.append(densities)
    log_lik, log_p, log_q = (torch.cat(part)[:num_draws] for part in zip(*parts, strict=True))
    signs = {n: t[:num_draws] for n, t in residuals.signs().items()}
    return PointwiseDensities(log_lik, log_p, log_q, signs)


def _sequential_densities(
    model: Program, guide: Program, batch: Batch, num_draws: int, local: list[str]
) -> PointwiseDensities:
    """Each draw of the global latents with K fresh draws of the local ones."""
    residuals = _Residuals(model, batch)
    structure = analyze_for_particles(model, guide, batch, {}, 1)
    K = LOCAL_PARTICLES if local else 1
    log_lik, log_p, log_q = [], [], []
    given_theta: PairStructure | None = None
    for _ in range(num_draws):
        sites: Sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        global_sites = {n: s for n, s in sites.items() if n not in local}
        theta = {n: s["value"] for n, s in global_sites.items()}
        residuals.add(global_sites, structure, None)
        given_theta = given_theta or local_structure(model, guide, batch, theta, K)
        row = marginal_log_lik(model, guide, batch, theta, K, given_theta)
        log_lik.append(row)
        log_p.append(site_log_prob(model, theta, batch) + row.sum())
        log_q.append(site_log_prob(guide, theta, batch))
    return PointwiseDensities(
        torch.stack(log_lik), torch.stack(log_p), torch.stack(log_q), residuals.signs()
    )


def global_log_densities(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    count: int,
    values: Tensors | None = None,
) -> tuple[Sites, Tensor, Tensor, Tensor]:
    """Draws θ_s of global latents, and their densities in one vectorized run.

    Args:
        values: site -> (S, plates, event), used instead of draws from the guide.

    Returns:
        The guide's sites, log p(x_n | θ_s) (S, N), log p(x, θ_s) (S,) and log q(θ_s) (S,).
    """
    structure, N = replace(structure, data_plate=DATA_PLATE), len(batch[0])
    guide_sites, model_sites = run_pair(model, guide, batch, {}, structure, count, values=values)
    tables = tabulate(guide_sites, model_sites, structure, True)
    per_row, joint = torch.zeros(count, N), torch.zeros(count)
    for name, value in tables.log_p.items():
        if value.shape[1] == N and name not in tables.log_q:
            per_row = per_row + value
        else:
            joint = joint + value.sum(1)
    if tables.marginal is not None:
        per_row = per_row + tables.marginal
    log_q = sum((v.sum(1) for v in tables.log_q.values()), torch.zeros(count))
    return guide_sites, per_row, joint + per_row.sum(1), log_q


def draw_globals(guide: Program, batch: Batch, num_draws: int) -> list[dict[str, Tensor]]:
    """θ_s ~ q: global site -> value, one dictionary per draw."""
    draws = []
    for _ in range(num_draws):
        sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        draws.append(
            {
                n: s["value"]
                for n, s in sites.items()
                if not site_is_subsample(s) and plate_dim(s, DATA_PLATE) is None
            }
        )
    return draws


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
    """
    programs = condition_on_globals(model, guide, theta)
    log_w = log_weights(*programs, *batch, num_particles=num_particles, structure=structure)
    return log_w.expand(-1, len(batch[0])).logsumexp(0) - math.log(len(log_w))


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


def site_log_prob(program: Program, values: Tensors, batch: Batch) -> Tensor:
    """Log-density () of values at a program's sites; sites that it lacks are ignored."""
    trace = poutine.trace(poutine.condition(program, data=dict(values))).get_trace(*batch)
    total = torch.zeros(())
    for name, value in values.items():
        if name in trace.nodes:  # a guide's auxiliary site is not in the model
            total = total + trace.nodes[name]["fn"].log_prob(value).sum()
    return total


class _Residuals:
    """Signs of x − x_rep, one replicated data set per θ_s."""

    def __init__(self, model: Program, batch: Batch) -> None:
        self.model, self.batch = model, batch
        try:
            arguments = observed_arguments(model, *batch)
        except CannotSayError:  # data cannot be simulated from the model
            arguments = {}
        self.data = {name: batch[i] for name, i in arguments.items()}
        self._signs: dict[str, list[Tensor]] = {name: [] for name in self.data}

    def add(
        self, sites: Mapping[str, dict], structure: PairStructure, particles: int | None
    ) -> None:
        """Draw one data set under each θ of `sites` and store the signs (S, N, P)."""
        if not self.data:
            return
        values = ReplayValues({n: s["value"] for n, s in sites.items()})
        replicate = trace_program(
            poutine.uncondition(self.model),
            self.batch,
            {},
            particles=particles,
            nesting=structure.nesting,
            replay=values,
        )
        for name, x in self.data.items():
            x_rep = replicate[name]["value"].reshape(particles or 1, len(x), -1)
            difference = compared_columns(x) - x_rep[..., _column_index(x)].double()
            self._signs[name].append(difference.nan_to_num(0.0).sign().to(torch.int8))

    def signs(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self._signs.items()}


def compared_columns(x: Tensor) -> Tensor:
    """The columns of x (N, ...) whose residual signs are stored: (N, P)."""
    return x.reshape(len(x), -1)[:, _column_index(x)].double()


def _column_index(x: Tensor) -> Tensor:
    """Evenly spaced columns of x (N, ...), as many as 1,000 draws leave memory for."""
    width = x[0].numel()
    columns = min(width, max(1, SIGN_CELLS // TYPICAL_DRAWS // len(x)))
    return torch.linspace(0, width - 1, columns).long()
