"""Run a program once and read its sites: the small steps that plans and particles share.

A program runs either plainly (one draw) or under a particle plate of size K that stands left of
all its own plates, so that every batch shape becomes (K, ..., B, ...).
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.handlers import infer_config
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import innermost, is_point, unwrap, unwrap_support

PARTICLE_PLATE = "num_particles_vectorized"  # Pyro's own name for it

Site = dict[str, Any]
Sites = dict[str, Site]


class Given(Messenger):
    """Put known values in the place of draws.

    A Delta site of a guide recomputes its point from the values given before it, for two reasons:
    comparing a stored point with a recomputed one bit for bit would turn a rounding error into
    -inf, and a point that depends on parameters is one of them, not a draw to be held still.
    """

    def __init__(self, values: Mapping[str, Any], recompute_points: bool = False) -> None:
        super().__init__()
        self.values = values
        self.recompute_points = recompute_points

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        if self.recompute_points and is_point(msg["fn"]):
            value = innermost(msg["fn"]).v
        msg["value"] = value
        msg["done"] = True


def is_scored(site: Mapping[str, Any]) -> bool:
    """Whether a site has a density: all but index draws and `pyro.deterministic`."""
    return not site_is_subsample(site) and not site["infer"].get("_deterministic")


def trace_program(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    particles: int | None,
    nesting: int,
    given: Given | None = None,
    enumerated: frozenset[str] = frozenset(),
    drawing: Messenger | None = None,
) -> Sites:
    """Run `program` and return its sample sites in order, index draws of plates included.

    `particles` is K for a run under the particle plate, None for a plain one; `nesting` is how
    many dimensions the program's own plates take. Sites named in `enumerated` take all values of
    their support at once. `drawing` is a handler that changes how sites are drawn.
    """
    recorder = poutine.trace()
    handlers: list[Any] = [recorder] if drawing is None else [drawing, recorder]
    if given is not None:
        handlers.append(given)
    if enumerated:
        first = -1 - nesting - (particles is not None)
        handlers.append(EnumMessenger(first_available_dim=first))
    if particles is not None:
        handlers.append(pyro.plate(PARTICLE_PLATE, particles, dim=-1 - nesting))
    if enumerated:
        program = infer_config(program, config_fn=_only(enumerated))
    _run_under(handlers, program, args, kwargs)
    nodes = recorder.trace.nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample"}


def _run_under(
    handlers: list[Any],
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    if not handlers:
        program(*args, **kwargs)
        return
    with handlers[0]:
        _run_under(handlers[1:], program, args, kwargs)


def _only(enumerated: frozenset[str]) -> Callable[[Any], dict[str, Any]]:
    """Enumerate these sites and no others, whatever marks the program carries."""

    def config(site: Any) -> dict[str, Any]:
        if site["type"] != "sample":
            return {}
        return {"enumerate": "parallel" if site["name"] in enumerated else None}

    return config


def plate_frames(site: Mapping[str, Any]) -> list[Any]:
    """The vectorised plates of the program around a site, outermost first."""
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]


def plate_dim(site: Mapping[str, Any], plate: str | None) -> int | None:
    """The dimension that the plate takes at this site, None where the site is outside it."""
    return next((f.dim for f in plate_frames(site) if f.name == plate), None)


def plate_ratio(site: Mapping[str, Any], plate: str | None = None) -> Any:
    """Π full_size / size over the plates around a site (only `plate`, if named)."""
    ratio: Any = 1.0
    for f in site["cond_indep_stack"]:
        named = plate is None or f.name == plate
        if named and f.full_size is not None and f.full_size is not f.size:
            ratio = ratio * (f.full_size / f.size)
    return ratio


def is_one(scale: Any) -> bool:
    """Whether a scale is a plain 1; tensors are never inspected (a capture could not)."""
    return not isinstance(scale, Tensor) and abs(scale - 1.0) < 1e-12


def log_prob(site: Mapping[str, Any]) -> Tensor:
    """log-density at a site, neither scaled nor masked, shape: its batch shape."""
    try:
        result: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(_refused(site, error)) from error
    return result


def _refused(site: Mapping[str, Any], error: ValueError) -> str:
    """The first value that a distribution refuses, by its place; else the distribution's words."""
    name, fn, value = site["name"], site["fn"], site["value"]
    fn = unwrap(fn)
    try:
        support = unwrap_support(fn.support)  # value by value
        wrong = ~support.check(value)
    except (NotImplementedError, AttributeError, RuntimeError):
        wrong = torch.zeros(())
    if not site["is_observed"] or not wrong.any():
        return f"log p at site '{name}' failed: {error}"
    at = tuple(wrong.nonzero()[0].tolist())
    what = f"{value[at].item():g}" if value[at].dim() == 0 else "a value"
    place = f"row {at[0]}" + (f", column {at[1]}" if len(at) == 2 else "")
    return (
        f"'{name}' observes {what} at {place if len(at) < 3 else at}, outside the support of "
        f"{type(fn).__name__} ({int(wrong.sum())} such in all). Correct the data, or choose a "
        "likelihood for them."
    )


def temper(value: Tensor, scale: Any, mask: Any) -> Tensor:
    """The user's poutine.scale and poutine.mask on a log-density (zero where masked)."""
    if mask is False:
        return torch.zeros_like(value)
    if not is_one(scale):
        value = value * scale
    if mask is None or mask is True:
        return value
    return torch.where(mask, value, value.new_zeros(()))


def table(value: Tensor, nesting: int, data_dim: int | None) -> Tensor:
    """Sum a log-density to (K, B): its particle dimension and its data dimension stay.

    `value` has at most 1 + nesting dimensions, the leftmost being particles. A dimension that is
    absent comes back with size 1.
    """
    rank = 1 + nesting
    value = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
    keep = rank + data_dim if data_dim is not None else None
    summed = [d for d in range(1, rank) if d != keep]
    if summed:
        value = value.sum(summed)
    return value if value.dim() == 2 else value.unsqueeze(-1)


def check_batch_shape(site: Mapping[str, Any], shape: torch.Size, particle_dim: int | None) -> None:
    """Every batch dimension must belong to a plate, else data would be summed as one datum."""
    dims = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    for dim in range(-len(shape), 0):
        if shape[dim] > 1 and dim not in dims and dim != particle_dim:
            raise ValueError(
                f"Site '{site['name']}' has batch shape {tuple(shape)}, but no plate declares its "
                f"dimension {dim} of size {shape[dim]}. Add .to_event({-dim}) to the distribution, "
                "or put the site inside a plate."
            )
