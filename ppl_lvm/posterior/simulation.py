"""Data from the model itself, with the latents that made them, in the shape of a batch.

Draw z ~ p(z), x ~ p(x | z); then z is an exact draw of p(z | x). The drawn x takes the place of
the observed tensor in the batch, so that an amortised guide reads it; what a model only
conditions on (inputs, lengths) stays, and so does what it masks (a label or value that is missing).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import own_masks
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import PARTICLE_PLATE, ReplayValues, Sites, trace_program

CELLS = 2**23  # numbers of replicated data drawn at once


def simulate(
    model: Program, *batch: Any, given: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """(site -> drawn value, batch with the observed tensors redrawn); `given` sites are fixed."""
    places = _places(model, batch)
    fixed = ReplayValues(given) if given else None
    with torch.no_grad():
        free = poutine.uncondition(model)
        sites = trace_program(free, batch, {}, particles=None, nesting=0, replay=fixed)
    values = {name: site["value"] for name, site in sites.items() if not site_is_subsample(site)}
    fresh = list(batch)
    for name, (place, seen) in places.items():
        drawn = values[name].reshape(batch[place].shape).to(batch[place].dtype)
        fresh[place] = drawn if seen is None else drawn.where(seen, batch[place])
    return values, tuple(fresh)


def observed_places(model: Program, *batch: Any) -> dict[str, int]:
    """Observed site -> position of its tensor among the arguments.

    Raises:
        CannotSayError: an observed value is none of the arguments.
    """
    return {name: place for name, (place, _) in _places(model, batch).items()}


def observed_steps(model: Program, *batch: Any) -> dict[str, int]:
    """Observed site -> how many steps a datum has: T where its values are (T, P), else 1."""
    with torch.no_grad(), preserve_rng():
        sites = trace_program(model, batch, {}, particles=None, nesting=0)
    shapes = {n: s["fn"].event_shape for n, s in sites.items() if s["is_observed"]}
    return {name: shape[0] if len(shape) == 2 else 1 for name, shape in shapes.items()}


def _places(model: Program, batch: tuple[Any, ...]) -> dict[str, tuple[int, Tensor | None]]:
    """Observed site -> its tensor's position, and which of its values the model does not mask."""
    with torch.no_grad(), preserve_rng():
        sites = trace_program(model, batch, {}, particles=None, nesting=0)
    places = {}
    for name, site in sites.items():
        if not site["is_observed"] or type(site["fn"]).__name__ == "Unit":
            continue
        found = [i for i, t in enumerate(batch) if isinstance(t, Tensor) and _same(t, site)]
        if not found:
            raise CannotSayError(
                f"The observed value of site '{name}' is none of the model's arguments, so data "
                "simulated from the model cannot be handed to it. Pass obs=x for an argument x."
            )
        places[name] = found[0], _unmasked(batch[found[0]], site)
    return places


def _same(tensor: Tensor, site: dict[str, Any]) -> bool:
    value = site["value"]
    if value is tensor:
        return True
    if value.numel() != tensor.numel():
        return False
    pair = (value.reshape(-1).double().nan_to_num(), tensor.reshape(-1).double().nan_to_num())
    seen = _unmasked(tensor, site)
    if seen is not None:
        a, b = (t[seen.reshape(-1)] for t in pair)
        return torch.equal(a, b)
    return torch.equal(*pair)


def _unmasked(tensor: Tensor, site: dict[str, Any]) -> Tensor | None:
    """Which values of an observed tensor count, in its shape; None where all do."""
    mask = next(own_masks(site["fn"]), None)
    if mask is None or bool(mask.all()):
        return None
    rows = mask.reshape(*mask.shape, *[1] * (tensor.dim() - mask.dim()))
    return rows.expand(tensor.shape) if rows.dim() == tensor.dim() else None


def replicates(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    count: int,
    prior: bool,
) -> Iterator[dict[str, Tensor]]:
    """Observed site -> (R, ...) fresh data sets, `count` in all, as many at once as memory allows.

    Global latents come from the guide, or from the prior if `prior`; local ones always from the
    prior. A new draw of z_n, not one
    from q(z_n | x_n), which has seen x_n and would reproduce it whatever the model.
    """
    places = _places(model, batch)
    size = sum(batch[i].numel() for i, _ in places.values())
    chunk = max(1, min(count, CELLS // max(size, 1))) if plan.vectorized else None
    done = 0
    while done < count:
        number = min(chunk, count - done) if chunk else None
        with torch.no_grad():
            shared = {} if prior else _globals(guide, batch, plan, number)
            sites = trace_program(
                poutine.uncondition(model),
                batch,
                {},
                particles=number,
                nesting=plan.nesting,
                replay=ReplayValues(shared),
            )
        done += number or 1
        fresh = {}
        for name, (place, seen) in places.items():
            drawn = sites[name]["value"].reshape(number or 1, *batch[place].shape)
            fresh[name] = drawn if seen is None else drawn.where(seen, batch[place].to(drawn))
        yield fresh


def _globals(
    guide: Program, batch: tuple[Any, ...], plan: PairStructure, number: int | None
) -> dict[str, Tensor]:
    sites: Sites = trace_program(guide, batch, {}, particles=number, nesting=plan.nesting)
    return {name: s["value"] for name, s in sites.items() if not _is_local(s, plan)}


def _is_local(site: dict[str, Any], plan: PairStructure) -> bool:
    frames = [f.name for f in site["cond_indep_stack"] if f.name != PARTICLE_PLATE]
    return (plan.data_plate or "data") in frames
