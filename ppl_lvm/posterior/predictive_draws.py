"""Prior and posterior predictive draws of a model.

Draws run under a particle plate where the programs do, many at a time.
"""

import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.core.types import Batch
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import ReplayValues, trace_program
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.enumerated_sites import EnumeratedSites
from ppl_lvm.programs.improper import improper_site
from ppl_lvm.programs.pair import ModelGuidePair

CHUNK, CELLS = 100_000, 2**22  # rows, and values in them, that are run at once
Draws = dict[str, Tensor]


def draw_prior(pair: ModelGuidePair, batch: Batch, structure: PairStructure, S: int) -> Draws:
    """Every site of the model, latent and observed, drawn from the prior: (S, ...).

    Nothing for a model with an improper prior.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        if improper_site(poutine.trace(pair.model).get_trace(*batch).nodes) is not None:
            return {}
    if not structure.vectorized:
        return _stack([predict.sample_prior(pair, *batch) for _ in range(S)])
    like, step = predict.sample_prior(pair, *batch), max(2, rows_at_once(batch) // len(batch[0]))
    parts = []
    for start in range(0, S, step):
        parts.append(_run_draws(pair, batch, structure, min(step, S - start), {}, like))
    return _concatenate(parts)


def complete_draws(
    pair: ModelGuidePair, batch: Batch, structure: PairStructure, draws: list[Draws]
) -> tuple[Draws, Draws]:
    """Draws (S, ...), and every site of the model given them, (S, ...).

    Each draw of the guide's latents is completed by one of the summed-out sites, from their joint
    posterior given it.
    """
    with poutine.block():
        enumerated = EnumeratedSites(pair.model, pair.guide, batch)
        if structure.vectorized:
            return _complete_at_once(pair, batch, structure, draws, enumerated)
        complete = [latents | enumerated.draw(latents) for latents in draws]
        nodes = [predict.run_model(pair, latents, batch).nodes for latents in complete]
    sites = [{n: s["value"] for n, s in run.items() if s["type"] == "sample"} for run in nodes]
    return _stack(complete), _stack(sites)


def _complete_at_once(
    pair: ModelGuidePair,
    batch: Batch,
    structure: PairStructure,
    draws: list[Draws],
    enumerated: EnumeratedSites,
) -> tuple[Draws, Draws]:
    """`complete_draws` under a particle plate, many draws at a time."""
    like, latents, sites = predict.sample_prior(pair, *batch), [], []
    total, largest = enumerated.num_values(draws[0])
    step = rows_at_once(batch) // max(len(batch[0]), largest)
    step = max(2, min(step, 4 * CELLS // max(1, total)))
    for start in range(0, len(draws), step):
        some = draws[start : start + step]
        values = enumerated.as_particles(some * 2 if len(some) == 1 else some)
        values |= enumerated.draw(values, max(2, len(some)))
        shapes = {**like, **draws[0]}
        latents.append({n: leading_draws(v, shapes[n], len(some)) for n, v in values.items()})
        sites.append(_run_draws(pair, batch, structure, len(some), values, like))
    return _concatenate(latents), _concatenate(sites)


def _run_draws(
    pair: ModelGuidePair,
    batch: Batch,
    structure: PairStructure,
    size: int,
    values: Draws,
    like: Draws,
) -> Draws:
    """Every site of the model in one run under a particle plate, (size, ...) in shapes of `like`.

    Sites in `values`, (K, plates, event), are fixed.
    """
    sites = trace_program(
        poutine.uncondition(pair.model),
        batch,
        {},
        particles=max(2, size),  # a single draw would have no particle dimension
        nesting=structure.nesting,
        replay=ReplayValues(values),
    )
    return {name: leading_draws(sites[name]["value"], v, size) for name, v in like.items()}


def _stack(draws: list[Draws]) -> Draws:
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def _concatenate(parts: list[Draws]) -> Draws:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def rows_at_once(batch: Batch) -> int:
    width = max(t[0].numel() for t in batch if isinstance(t, Tensor) and t.dim())
    return min(CHUNK, CELLS // max(width, 1))


def leading_draws(value: Tensor, like: Tensor, size: int) -> Tensor:
    """The first `size` draws of a site, each in the shape of `like`."""
    draws = value if value.dim() > like.dim() else value[None].expand(size, *like.shape)
    return draws[:size].reshape(size, *like.shape)
