"""A fitted pair as ArviZ data: draws of everything, named after sites and plates.

The pointwise log-likelihood is marginal over local latents: log p(x_n | θ_s) for draw s of the
global latents, by importance sampling with fresh local draws. The conditional log p(x_n | z_n)
with z_n ~ q(z_n | x_n) has seen x_n, and LOO from it is wrong (Magnusson et al. 2019,
https://arxiv.org/abs/1904.10679).
"""

import math
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm import predict
from ppl_lvm.arviz import to_inference_data
from ppl_lvm.pair import Pair, latent_sites
from ppl_lvm.particles import log_weights

LOCAL_PARTICLES = 64  # fresh local draws behind each value of the pointwise log-likelihood
CHUNK = 100_000


def to_arviz(pair: Pair, *batch: Any, num_samples: int = 500, seed: int = 0) -> Any:
    """ArviZ data of `num_samples` draws S: one chain, draws first.

    Groups: posterior (latent sites, those summed out of the model included), posterior_predictive,
    log_likelihood, prior, prior_predictive, observed_data; log p and log q of each draw in
    sample_stats where the guide has global latents. Without global latents the parameters are
    point estimates: the log-likelihood's draws then differ only by the error of their importance
    sampling, and LOO says nothing of what the parameters have learnt by heart.
    """
    with torch.no_grad(), torch.random.fork_rng(), pair.scope():
        torch.manual_seed(seed)
        summed = predict.summed_sites(pair, *batch)
        draws = [_one_draw(pair, batch, summed) for _ in range(num_samples)]
        prior = [predict.sample_prior(pair, *batch) for _ in range(num_samples)]
        log_likelihood, log_p, log_q = _densities(pair, batch, [d["globals"] for d in draws])
        observed = _observed(pair, batch)
        dims = _dims(pair, batch)
    latent = sorted({n for d in draws for n in d["posterior"]})
    return to_inference_data(
        {n: _stack([d["posterior"][n] for d in draws]) for n in latent},
        log_likelihood={"log_likelihood": log_likelihood}
        if len(observed) != 1
        else {next(iter(observed)): log_likelihood},
        posterior_predictive={n: _stack([d["predictive"][n] for d in draws]) for n in observed},
        prior={n: _stack([p[n] for p in prior]) for n in latent if n in prior[0]},
        prior_predictive={n: _stack([p[n] for p in prior]) for n in observed},
        observed_data={n: v.numpy() for n, v in observed.items()},
        log_p=log_p,
        log_q=log_q,
        dims=dims,
        coords={"data": list(range(len(batch[0])))},
    )


def _stack(values: list[Tensor]) -> np.ndarray[Any, Any]:
    return torch.stack(values).numpy()


def _one_draw(pair: Pair, batch: tuple[Any, ...], summed: frozenset[str]) -> dict[str, Any]:
    with poutine.block():
        latents, shared = predict.draw_guide(pair, batch)
        if summed:
            latents |= predict.sample_summed(pair, shared, *batch)
        replayed = predict.run_model(pair, latents, batch)
    return {
        "globals": shared,
        "posterior": latents,
        "predictive": {n: s["value"] for n, s in replayed.nodes.items() if s["type"] == "sample"},
    }


def _densities(
    pair: Pair, batch: tuple[Any, ...], draws: list[dict[str, Tensor]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]:
    """log p(x_n | θ_s) (S, N), and joint log p(θ_s, x), log q(θ_s) (S,) where θ exists."""
    S, N = len(draws), len(batch[0])
    if not draws[0]:
        K = 1 if not _has_latents(pair, batch) else LOCAL_PARTICLES
        step = max(1, CHUNK // (N * K))
        parts = []
        for start in range(0, S, step):
            count = min(step, S - start)
            log_w = log_weights(pair.model, pair.guide, *batch, num_particles=count * K)
            log_w = log_w.expand(-1, N).reshape(count, K, N)
            parts.append(log_w.logsumexp(1) - math.log(K))
        return torch.cat(parts).numpy(), None, None
    rows, log_p, log_q = [], [], []
    for shared in draws:
        names = list(shared)
        model = poutine.block(poutine.condition(pair.model, data=shared), hide=names)
        guide = poutine.block(poutine.condition(pair.guide, data=shared), hide=names)
        K = 1 if not _has_latents(pair, batch, besides=frozenset(names)) else LOCAL_PARTICLES
        log_w = log_weights(model, guide, *batch, num_particles=K)
        row = log_w.expand(-1, N).logsumexp(0) - math.log(K)
        rows.append(row)
        log_p.append(_log_prob_of(pair.model, shared, batch) + row.sum())
        log_q.append(_log_prob_of(pair.guide, shared, batch))
    return torch.stack(rows).numpy(), torch.stack(log_p).numpy(), torch.stack(log_q).numpy()


def _has_latents(pair: Pair, batch: tuple[Any, ...], besides: frozenset[str] = frozenset()) -> bool:
    with poutine.block():
        return bool(latent_sites(poutine.trace(pair.guide).get_trace(*batch)).keys() - besides)


def _log_prob_of(program: Any, values: dict[str, Tensor], batch: tuple[Any, ...]) -> Tensor:
    with poutine.block():
        trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*batch)
    total = torch.zeros(())
    for name, value in values.items():
        total = total + trace.nodes[name]["fn"].log_prob(value).sum()
    return total


def _observed(pair: Pair, batch: tuple[Any, ...]) -> dict[str, Tensor]:
    with poutine.block():
        trace = poutine.trace(pair.model).get_trace(*batch)
    return {n: trace.nodes[n]["value"] for n in predict.observed_names(pair, batch)}


def _dims(pair: Pair, batch: tuple[Any, ...]) -> dict[str, list[str]]:
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
