"""Simulated and replicated data from the model.

Draw z ~ p(z), x ~ p(x | z); then z is an exact draw of p(z | x). The simulated x replaces the
observed tensor in the batch, so that an amortized guide reads it. Arguments that a model only
conditions on (inputs, lengths) stay, and so do masked values (a missing label or value).
"""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import own_masks
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import ReplayValues, Sites, trace_program
from ppl_lvm.posterior.enumerated_sites import EnumeratedSites
from ppl_lvm.programs.dependencies import FollowNames
from ppl_lvm.programs.improper import require_proper
from ppl_lvm.programs.row_plates import is_row_site

CELLS = 2**23  # values of replicated data drawn at once


def simulate(
    model: Program, *batch: Any, fixed: Tensors | None = None
) -> tuple[dict[str, Tensor], Batch]:
    """(site -> value, batch with the observed tensors simulated); sites in `fixed` are fixed."""
    arguments = _observed_arguments(model, batch)
    values_at_sites = ReplayValues(fixed) if fixed else None
    with torch.no_grad():
        free = poutine.uncondition(model)
        sites = trace_program(free, batch, {}, particles=None, nesting=0, replay=values_at_sites)
    require_proper({n: s for n, s in sites.items() if n not in (fixed or {})})
    values = {name: site["value"] for name, site in sites.items() if not site_is_subsample(site)}
    simulated = list(batch)
    for name, (i, observed) in arguments.items():
        x = values[name].reshape(batch[i].shape).to(batch[i].dtype)
        simulated[i] = x if observed is None else x.where(observed, batch[i])
    return values, tuple(simulated)


def observed_arguments(model: Program, *batch: Any) -> dict[str, int]:
    """Observed site -> position of its tensor among the arguments.

    Raises:
        CannotSayError: an observed value is none of the arguments.
    """
    return {name: i for name, (i, _) in _observed_arguments(model, batch).items()}


def sequence_lengths(model: Program, *batch: Any) -> dict[str, int]:
    """Observed site -> steps of a row: T where its values are (T, P), else 1."""
    with torch.no_grad(), preserve_rng():
        sites = trace_program(model, batch, {}, particles=None, nesting=0)
    shapes = {n: s["fn"].event_shape for n, s in sites.items() if s["is_observed"]}
    return {name: shape[0] if len(shape) == 2 else 1 for name, shape in shapes.items()}


def _observed_arguments(model: Program, batch: Batch) -> dict[str, tuple[int, Tensor | None]]:
    """Observed site -> position of its tensor, and the mask of its observed values."""
    copies = tuple(part.clone() if isinstance(part, Tensor) else part for part in batch)
    with torch.no_grad(), preserve_rng(), pyro.validation_enabled(False), FollowNames() as names:
        for i, part in enumerate(copies):
            if isinstance(part, Tensor):
                names.set(part, frozenset({str(i)}))
        sites = trace_program(model, copies, {}, particles=None, nesting=0)
        read = {name: names.of(site["value"]) for name, site in sites.items()}
    arguments = {}
    for name, site in sites.items():
        if not site["is_observed"] or type(site["fn"]).__name__ == "Unit":
            continue
        # Of two arguments with equal values the site observes the one that it is computed from.
        matches = [
            i
            for i, part in enumerate(copies)
            if isinstance(part, Tensor) and str(i) in read[name] and _equal(part, site)
        ]
        if not matches:
            raise CannotSayError(
                f"The observed value of site '{name}' is none of the model's arguments, so data "
                "simulated from the model cannot be passed to it.",
                "Use obs=x with an argument x.",
            )
        arguments[name] = matches[0], _observed_mask(batch[matches[0]], site)
    return arguments


def _equal(tensor: Tensor, site: dict[str, Any]) -> bool:
    """True if a site observes a tensor, up to masked values."""
    value = site["value"]
    if value is tensor:
        return True
    if value.numel() != tensor.numel():
        return False
    a, b = (t.reshape(-1).double().nan_to_num() for t in (value, tensor))
    observed = _observed_mask(tensor, site)
    if observed is not None:
        a, b = (t[observed.reshape(-1)] for t in (a, b))
    return torch.equal(a, b)


def _observed_mask(tensor: Tensor, site: dict[str, Any]) -> Tensor | None:
    """Mask of an observed tensor, in its shape; None where all values are observed."""
    mask = next(own_masks(site["fn"]), None)
    if mask is None or bool(mask.all()):
        return None
    rows = mask.reshape(*mask.shape, *[1] * (tensor.dim() - mask.dim()))
    return rows.expand(tensor.shape) if rows.dim() == tensor.dim() else None


def replicated_data(
    model: Program, guide: Program, batch: Batch, structure: PairStructure, count: int, prior: bool
) -> Iterator[dict[str, Tensor]]:
    """Observed site -> (R, ...) replicated data sets, `count` in total, in chunks that fit memory.

    Global latents come from the guide, summed-out ones from their posterior given it, or all from
    the prior if `prior`. Local ones always come from the prior: z_n from q(z_n | x_n) would
    reproduce x_n whatever the model, because it depends on x_n.
    """
    arguments = _observed_arguments(model, batch)
    size = sum(batch[i].numel() for i, _ in arguments.values())
    chunk = max(1, min(count, CELLS // max(size, 1))) if structure.vectorized else None
    done = 0
    while done < count:
        particles = min(chunk, count - done) if chunk else None
        with torch.no_grad():
            theta = {} if prior else _draw_globals(model, guide, batch, structure, particles)
            sites = trace_program(
                poutine.uncondition(model),
                batch,
                {},
                particles=particles,
                nesting=structure.nesting,
                replay=ReplayValues(theta),
            )
        require_proper({n: s for n, s in sites.items() if n not in theta})
        done += particles or 1
        replicates = {}
        for name, (i, observed) in arguments.items():
            x_rep = sites[name]["value"].reshape(particles or 1, *batch[i].shape)
            replicates[name] = (
                x_rep if observed is None else x_rep.where(observed, batch[i].to(x_rep))
            )
        yield replicates


def _draw_globals(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    particles: int | None,
) -> dict[str, Tensor]:
    sites: Sites = trace_program(guide, batch, {}, particles=particles, nesting=structure.nesting)
    values = {name: s["value"] for name, s in sites.items()}
    draws = {name: v for name, v in values.items() if not _is_local(sites[name], structure)}
    enumerated = EnumeratedSites(model, guide, batch)
    summed = [n for n, site in enumerated.sites.items() if not _is_local(site, structure)]
    if summed:
        states = enumerated.draw(values, particles)
        draws |= {name: states[name] for name in summed}
    return draws


def _is_local(site: dict[str, Any], structure: PairStructure) -> bool:
    return is_row_site(site, structure.data_plate or structure.row_plates)
