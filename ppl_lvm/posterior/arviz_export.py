"""Export of a fitted pair to ArviZ.

Variables are named after sites, dimensions after plates.

The pointwise log-likelihood is marginal over local latents: log p(x_n | θ_s) for draw s of the
global latents, by importance sampling with fresh local draws. The conditional log p(x_n | z_n)
with z_n ~ q(z_n | x_n) depends on x_n through z_n, and LOO from it is wrong (Magnusson et al. 2019,
https://arxiv.org/abs/1904.10679). Where rows share enumerated sites (a change point), it is
log p(x_n | x_-n, θ_s): these sites are summed out given the other rows, as LOO needs. Where
log p(x) has no terms by row the group is left out, with a warning.

Draws come from q. Optionally they carry importance weights, or are resampled by them, so that they
represent the posterior: smoothed as in Vehtari et al. (2024), https://arxiv.org/abs/1507.02646.
Where all latents are local, the draws of each row have their own weights. Draws of global latents
have one weight, and local latents given them are resampled among fresh draws.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Array, Batch, Draws
from ppl_lvm.particles import analyze_for_particles, draw_particles, log_weights
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import trace_program
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.arviz_container import to_inference_data
from ppl_lvm.posterior.conditional_density import (
    LOCAL_PARTICLES,
    conditional_densities,
    joint_densities,
)
from ppl_lvm.posterior.global_states import (
    as_global_draws,
    condition_on_globals,
    local_structure,
)
from ppl_lvm.posterior.predictive_draws import (
    complete_draws,
    draw_prior,
    leading_draws,
    rows_at_once,
)
from ppl_lvm.posterior.psis import RELIABLE_K_HAT, psis
from ppl_lvm.posterior.simulation import observed_arguments
from ppl_lvm.programs.pair import ModelGuidePair

Latents = dict[str, Tensor]


def to_arviz(
    pair: ModelGuidePair,
    *batch: Any,
    num_samples: int = 500,
    draws: Draws = "q",
    seed: int = 0,
    known: Latents | None = None,
    num_chains: int = 1,
    columns: Sequence[str] | None = None,
) -> Any:
    """ArviZ data of `num_samples` draws S: one chain, draws first.

    Groups: posterior (latent sites, those summed out of the model included), posterior_predictive,
    log_likelihood, prior, prior_predictive, observed_data, sample_stats. A model without latents
    has no posterior and no prior (its parameters are one point).

    If the guide has global latents, sample_stats has log_p and log_q of each draw (S,), for
    `ppl_lvm.posterior.arviz_container.loo` and, in ArviZ 1.x, `az.loo_approximate_posterior`; if
    all are local, it has log_p_per_row and log_q_per_row (S, N). Without global latents the
    parameters are point estimates: the log-likelihood's draws then differ only by the error of
    their importance sampling, and LOO does not detect overfitting.

    Args:
        draws: "q": draws from the guide. "weighted": the same with `weight` in sample_stats,
            smoothed and summing to one over draws, (S,) or (S, N). "resampled": resampled by these
            weights, so that all draws have equal weight; log_p and log_q are then left out, since
            the draws are no longer q's. The attribute pareto_k is the reliability of the weights:
            above 0.7 they are unreliable.

        known: draws of all global latents, site -> (S, …), in place of the guide's.
        num_chains: C of these draws, chain after chain.
        columns: names of the columns of the rows, the coordinates of observed sites of that width.

    Raises:
        ValueError: `draws` is none of these, or the programs do not run under a particle plate, so
            that local latents cannot be weighted.
    """
    with torch.no_grad(), preserve_rng(), pair.scope():
        for program in (pair.guide, pair.model):
            sites = trace_program(program, batch, {}, particles=None, nesting=0)
            predict.require_all_rows(sites, pair.row_plates, batch, "to_arviz")
        torch.manual_seed(seed)
        structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 2)
        if known is None:
            sampled = draw_posterior(pair, batch, structure, num_samples, draws)
        else:
            sampled = _known(pair, batch, known)
        posterior, predictive = complete_draws(pair, batch, structure, sampled.latents)
        prior = draw_prior(pair, batch, structure, num_samples)
        observed = _observed(pair, batch)
        dims = _dims(pair, batch)
    latent = sorted(posterior)
    attributes = {"draws": draws if known is None else "posterior"}
    rows = next((n for names in dims.values() for n in names if n in pair.row_plates), "data")
    per_row = {name: [rows] for name in sampled.stats} if sampled.local else {}
    coords: dict[str, list[Any]] = {n: list(range(len(batch[0]))) for n in pair.row_plates}
    for name, value in observed.items():
        if columns is not None and value.dim() == 2 and value.shape[1] == len(columns):
            coords[dims[name][-1]] = list(columns)
    terms = next(iter(observed)) if len(observed) == 1 else "log_likelihood"
    return to_inference_data(
        {n: posterior[n].numpy() for n in latent},
        log_likelihood={terms: sampled.log_likelihood} if sampled.log_likelihood.size else {},
        posterior_predictive={n: predictive[n].numpy() for n in observed},
        prior={n: prior[n].numpy() for n in latent if n in prior},
        prior_predictive={n: prior[n].numpy() for n in observed if n in prior},
        observed_data={n: v.numpy() for n, v in observed.items()},
        sample_stats=sampled.stats,
        dims=dims | per_row,
        log_likelihood_dims={terms: [rows]},
        coords=coords,
        num_chains=num_chains,
        attrs=attributes | ({} if sampled.k is None else {"pareto_k": sampled.k}),
    )


@dataclass
class PosteriorDraws:
    """S draws of the guide's latents, each in the shapes of a single run.

    Attributes:
        local: True if `stats` are (S, N), one per row.
        k: the largest Pareto k̂ of the weights; None without weights.
    """

    latents: list[Latents]
    log_likelihood: Array
    stats: dict[str, Array]
    local: bool
    k: float | None


def draw_posterior(
    pair: ModelGuidePair, batch: Batch, structure: PairStructure, S: int, draws: Draws
) -> PosteriorDraws:
    """S draws of the guide's latents, weighted or resampled as in `to_arviz`."""
    if structure.data_plate is not None and structure.latents and structure.vectorized:
        return _draw_local(pair, batch, structure, S, draws)
    with poutine.block():
        guide_draws = [predict.draw_guide(pair, batch) for _ in range(S)]
    latents = [all_latents for all_latents, _ in guide_draws]
    thetas = [global_latents for _, global_latents in guide_draws]
    log_likelihood, log_p, log_q = _densities(pair, batch, thetas)
    if log_p is None or log_q is None:
        if draws != "q" and structure.latents:
            raise ValueError(
                "Local latents cannot be weighted: the programs do not run under a particle plate. "
                'Use draws="q".'
            )
        return PosteriorDraws(latents, log_likelihood, {}, False, None)
    stats: dict[str, Array] = {"log_p": log_p, "log_q": log_q}
    if draws == "q":
        return PosteriorDraws(latents, log_likelihood, stats, False, None)
    log_w, k = psis(log_p.astype(np.float64) - log_q)
    weight = np.exp(log_w)
    if draws == "weighted":
        chosen = np.arange(S)
        stats["weight"] = weight
    else:
        chosen = _resample(weight[:, None], S)[:, 0]
        stats = {}
    if latents[0].keys() - thetas[0].keys():
        given_theta = local_structure(pair.model, pair.guide, batch, thetas[0], LOCAL_PARTICLES)
        latents = [
            _resample_locals(pair, batch, thetas[s], latents[s], given_theta) for s in chosen
        ]
    else:
        latents = [latents[s] for s in chosen]
    return PosteriorDraws(latents, log_likelihood[chosen], stats, False, float(k))


def posterior_draws(pair: ModelGuidePair, batch: Batch, count: int, seed: int) -> Latents:
    """Draws (S, …) of the guide's latents, resampled by importance weights where k̂ ≤ 0.7."""

    def of_guide(number: int) -> list[Latents]:
        torch.manual_seed(seed)
        with poutine.block():
            return [predict.draw_guide(pair, batch)[0] for _ in range(number)]

    with torch.no_grad(), preserve_rng(), pair.scope():
        one, other = of_guide(2)
        latents = None
        if any(not torch.equal(one[n], other[n]) for n in one):  # else it is a point
            latents = _resampled_draws(pair, batch, count, seed)
        latents = latents or of_guide(count)
        # Inside the scope: a point is a parameter, which may have another value outside.
        return {n: torch.stack([draw[n] for draw in latents]) for n in latents[0]}


def _resampled_draws(
    pair: ModelGuidePair, batch: Batch, count: int, seed: int
) -> list[Latents] | None:
    """Draws by importance weights; None where they are not reliable."""
    torch.manual_seed(seed)
    structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 2)
    try:
        sampled = draw_posterior(pair, batch, structure, count, "resampled")
    except ValueError:  # local latents that cannot be weighted
        return None
    reliable = sampled.k is not None and sampled.k <= RELIABLE_K_HAT
    return sampled.latents if reliable else None


def _known(pair: ModelGuidePair, batch: Batch, known: Latents) -> PosteriorDraws:
    """Known draws of the global latents."""
    with poutine.block():
        drawn, _ = predict.draw_guide(pair, batch)
    if hasattr(pair.guide, "auxiliary_draws"):  # conditions the guide as well
        known = {**known, **pair.guide.auxiliary_draws(known)}
    count = len(next(iter(known.values())))
    latents = [{n: known[n][s] for n in drawn if n in known} for s in range(count)]
    log_likelihood, _, _ = _densities(pair, batch, latents)
    return PosteriorDraws(latents, log_likelihood, {}, False, None)


def _draw_local(
    pair: ModelGuidePair, batch: Batch, structure: PairStructure, S: int, draws: Draws
) -> PosteriorDraws:
    """All draws under a particle plate; each row has its own weights."""
    N, step = len(batch[0]), max(2, rows_at_once(batch) // len(batch[0]))
    axes: dict[str, int | None] = {}
    with poutine.block():
        single_draw, theta = predict.draw_guide(pair, batch)
    values: dict[str, list[Tensor]] = {name: [] for name in single_draw}
    log_p, log_q = [], []
    for start in range(0, S, step):
        size = min(step, S - start)
        # A single draw would have no particle dimension.
        p = draw_particles(pair.model, pair.guide, batch, {}, structure, max(2, size))
        log_p.append(p.log_p[:size].expand(-1, N))
        log_q.append(p.log_q[:size].expand(-1, N))
        for name, like in single_draw.items():
            values[name].append(leading_draws(p.site_draws[name].value, like, size))
            axes[name] = p.site_draws[name].row_axis
    table = {name: torch.cat(v) for name, v in values.items()}
    stats: dict[str, Array] = {
        "log_p_per_row": torch.cat(log_p).numpy(),
        "log_q_per_row": torch.cat(log_q).numpy(),
    }
    k = None
    if draws != "q":
        log_w, k_hat = psis((torch.cat(log_p) - torch.cat(log_q)).double().T.numpy())  # (N, S)
        weight, k = np.exp(log_w).T, float(k_hat.max())
        if draws == "weighted":
            stats["weight"] = weight
        else:
            stats = {}
            index = torch.from_numpy(_resample(weight, S))  # (S, N)
            table = {n: _pick(t, index, axes[n]) for n, t in table.items()}
    latents = [{n: v[s] for n, v in table.items()} for s in range(S)]
    thetas = [{n: draw[n] for n in theta} for draw in latents]
    log_likelihood, _, _ = _densities(pair, batch, thetas)
    return PosteriorDraws(latents, log_likelihood, stats, True, k)


def _resample(weight: Array, S: int) -> Array:
    """Indices (S, N) by weights (S, N), each column by systematic resampling, then shuffled."""
    N = weight.shape[1]
    at = (torch.arange(S)[:, None] + torch.rand(N)) / S  # (S, N)
    edges = torch.from_numpy(weight / weight.sum(0)).cumsum(0)
    index = torch.searchsorted(edges.T.contiguous(), at.double().T.contiguous()).T
    order = torch.rand(S, N).argsort(0)
    shuffled: Array = index.clamp(max=len(weight) - 1).gather(0, order).numpy()
    return shuffled


def _pick(values: Tensor, index: Tensor, axis: int | None) -> Tensor:
    """values (S, ..., N, ...) of a site -> (S, ...) with row n of draw s from draw index[s, n].

    `axis` is the dimension of the rows; values that all rows share stay as they are.
    """
    if axis is None:
        return values
    moved = values.movedim(axis, 1)  # (S, N, ...)
    return moved[index, torch.arange(moved.shape[1])].movedim(1, axis)


def _resample_locals(
    pair: ModelGuidePair, batch: Batch, theta: Latents, latents: Latents, structure: PairStructure
) -> Latents:
    """The local latents resampled among K fresh draws given the global ones."""
    N = len(batch[0])
    model, guide = condition_on_globals(pair.model, pair.guide, theta)
    p = draw_particles(model, guide, batch, {}, structure, LOCAL_PARTICLES)
    weight = p.log_w.expand(-1, N).double().softmax(0)
    index = torch.multinomial(weight.T, 1).T  # (1, N)
    resampled = dict(latents)
    for name, draws in p.site_draws.items():
        value = draws.value.reshape(-1, *latents[name].shape)
        resampled[name] = _pick(value, index, draws.row_axis)[0]
    return resampled


def _densities(
    pair: ModelGuidePair, batch: Batch, draws: list[dict[str, Tensor]]
) -> tuple[Array, Array | None, Array | None]:
    """log p(x_n | θ_s) (S, N), and joint log p(θ_s, x), log q(θ_s) (S,) where θ exists.

    The former is (S, 0) with a warning where log p(x) has no terms by row.
    """
    S, N = len(draws), len(batch[0])
    structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 2)
    if structure.data_plate is not None or not (structure.latents or structure.enumerated):
        K = LOCAL_PARTICLES if structure.latents else 1
        step = max(1, rows_at_once(batch) // (N * K))
        parts = []
        for start in range(0, S, step):
            count = min(step, S - start)
            log_w = log_weights(
                pair.model, pair.guide, *batch, num_particles=count * K, structure=structure
            )
            log_w = log_w.expand(-1, N).reshape(count, K, N)
            parts.append(log_w.logsumexp(1) - math.log(K))
        return torch.cat(parts).numpy(), None, None
    local = bool(structure.latents.keys() - draws[0].keys())
    theta = as_global_draws(pair.guide, batch, draws if draws[0] or local else draws[:1])
    log_p = log_q = None
    with poutine.block():
        try:
            densities = conditional_densities(
                pair.model, pair.guide, batch, theta, structure=structure
            )
            log_likelihood = densities.log_lik.expand(S, N)
            log_p, log_q = densities.log_p, densities.log_q
        except CannotSayError as error:
            warnings.warn(f"to_arviz: there is no log_likelihood. {error}", stacklevel=2)
            log_likelihood = torch.empty(S, 0)
            if draws[0] and not local and structure.vectorized:
                log_p, log_q = joint_densities(pair.model, pair.guide, batch, structure, theta)
    if log_p is None or log_q is None or not draws[0]:
        return log_likelihood.numpy(), None, None
    return log_likelihood.numpy(), log_p.numpy(), log_q.numpy()


def _observed(pair: ModelGuidePair, batch: Batch) -> dict[str, Tensor]:
    """Observed site -> its value, NaN where the argument that it observes has NaN."""
    with poutine.block():
        values = predict.observed_values(poutine.trace(pair.model).get_trace(*batch))
    with suppress(CannotSayError):  # a value may be none of the arguments
        for name, i in observed_arguments(pair.model, *batch).items():
            missing = batch[i].isnan().reshape(values[name].shape)
            if missing.any():
                values[name] = torch.where(missing, math.nan, values[name])
    return values


def _dims(pair: ModelGuidePair, batch: Batch) -> dict[str, list[str]]:
    """Site -> dimension names: plates by their names, event dimensions as site_dim_i."""
    with poutine.block():
        traces = [poutine.trace(p).get_trace(*batch) for p in (pair.guide, pair.model)]
    dims = {}
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            plates = {f.dim: f.name for f in site["cond_indep_stack"] if f.dim is not None}
            batch_dims = len(site["fn"].batch_shape)
            names = [plates.get(i - batch_dims, f"{name}_batch_{i}") for i in range(batch_dims)]
            events = site["value"].dim() - batch_dims
            dims[name] = names + [f"{name}_dim_{i}" for i in range(events)]
    return dims
