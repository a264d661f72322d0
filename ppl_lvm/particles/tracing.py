"""Run a program once and read its sample sites.

A program runs once without a particle plate, or under a particle plate of size K to the left of
all its plates, so that every batch shape becomes (K, ..., B, ...).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.handlers import infer_config
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import innermost, is_point, unwrap, unwrap_support
from ppl_lvm.programs.minibatch import WEIGHTS

PARTICLE_PLATE = "num_particles_vectorized"  # Pyro's name
# Errors of a program at values or shapes that it does not expect.
PROGRAM_ERRORS = (AssertionError, LookupError, RuntimeError, TypeError, ValueError)
SCALES = "_scales"  # entry of a site's `infer`: the scales of the contexts around it

Site = dict[str, Any]
Sites = dict[str, Site]


class ReplayValues(Messenger):
    """Replace draws by known values.

    With `recompute_points` a Delta site recomputes its point from the values before it, for two
    reasons: a stored point that differs by a rounding error would score -inf, and a point that
    depends on parameters is not a draw, so it keeps its gradient.
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


class _RecordScales(Messenger):
    """Record the scale of every poutine.scale around a site: their product has lost them."""

    def _pyro_sample(self, msg: Any) -> None:
        scales = tuple(h.scale for h in _PYRO_STACK if isinstance(h, ScaleMessenger))
        if scales:
            msg["infer"] = {**(msg["infer"] or {}), SCALES: scales}


def is_scored(site: Mapping[str, Any]) -> bool:
    """True if a site has a density: all but index draws and `pyro.deterministic`."""
    return not site_is_subsample(site) and not site["infer"].get("_deterministic")


def trace_program(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    particles: int | None,
    nesting: int,
    replay: ReplayValues | None = None,
    enumerated: frozenset[str] = frozenset(),
    drawing: Messenger | None = None,
) -> Sites:
    """Run `program` and return its sample sites in order, including index draws of plates.

    `particles` is K for a run under the particle plate, else None. `nesting` is the number of the
    program's plate dimensions. Sites named in `enumerated` take all values of their support in
    parallel. `drawing` is a handler that changes how sites are drawn.
    """
    recorder = poutine.trace()
    handlers: list[Any] = [recorder] if drawing is None else [drawing, recorder]
    if replay is not None:
        handlers.append(replay)
    if enumerated:
        first = -1 - nesting - (particles is not None)
        handlers += [EnumMessenger(first_available_dim=first), _RecordScales()]
    if particles is not None:
        handlers.append(pyro.plate(PARTICLE_PLATE, particles, dim=-1 - nesting))
    if enumerated:
        program = infer_config(program, config_fn=_only(enumerated))
    _run_under(handlers, program, args, kwargs)
    nodes = recorder.trace.nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample"}


def _run_under(
    handlers: list[Any], program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not handlers:
        program(*args, **kwargs)
        return
    with handlers[0]:
        _run_under(handlers[1:], program, args, kwargs)


def _only(enumerated: frozenset[str]) -> Callable[[Any], dict[str, Any]]:
    """Enumerate these sites and no others, regardless of their marks."""

    def config(site: Any) -> dict[str, Any]:
        if site["type"] != "sample":
            return {}
        return {"enumerate": "parallel" if site["name"] in enumerated else None}

    return config


def plate_frames(site: Mapping[str, Any]) -> list[Any]:
    """The program's vectorized plates around a site, outermost first."""
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]


def plate_dim(site: Mapping[str, Any], names: Collection[str] | None) -> int | None:
    """The dimension of the plate of one of these names at this site; None if it is outside."""
    return next((f.dim for f in plate_frames(site) if f.name in (names or ())), None)


def plate_ratio(site: Mapping[str, Any], names: Collection[str] | None = None) -> Any:
    """Π full_size / size over the plates around a site, or of those of these names only."""
    ratio: Any = 1.0
    for f in site["cond_indep_stack"]:
        selected = names is None or f.name in names
        if selected and f.full_size is not None and f.full_size is not f.size:
            ratio = ratio * (f.full_size / f.size)
    return ratio


def inside_scale(site: Mapping[str, Any], data_plate: frozenset[str] | None) -> Any:
    """The scale inside log_w: the site's scale without the data plate's N/B.

    A joint log-weight has the weights of rows inside.
    """
    if data_plate is None and WEIGHTS in site["infer"]:
        return site["scale"] * site["infer"][WEIGHTS]
    ratio = 1.0 if data_plate is None else plate_ratio(site, data_plate)
    return site["scale"] if is_one(ratio) else site["scale"] / ratio


def is_one(scale: Any) -> bool:
    """True if a scale is the Python number 1; a captured step cannot inspect tensors."""
    return not isinstance(scale, Tensor) and abs(scale - 1.0) < 1e-12


def log_prob(site: Mapping[str, Any]) -> Tensor:
    """log-density at a site, neither scaled nor masked, in its batch shape."""
    try:
        result: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(_invalid_value_message(site, error)) from error
    return result


def _invalid_value_message(site: Mapping[str, Any], error: ValueError) -> str:
    """Error message with the position of the first value outside the support."""
    name, fn, value = site["name"], site["fn"], site["value"]
    fn = unwrap(fn)
    try:
        invalid = ~unwrap_support(fn.support).check(value)  # elementwise
    except (NotImplementedError, AttributeError, RuntimeError):
        invalid = torch.zeros(())
    if not site["is_observed"] or not invalid.any():
        return f"log p at site '{name}' failed: {error}"
    index = tuple(invalid.nonzero()[0].tolist())
    shown = f"{value[index].item():g}" if value[index].dim() == 0 else "a value"
    place = f"row {index[0]}" + (f", column {index[1]}" if len(index) == 2 else "")
    return (
        f"'{name}' observes {shown} at {place if len(index) < 3 else index}, outside the support "
        f"of {type(fn).__name__} ({int(invalid.sum())} invalid values). Correct the data, or "
        "choose another likelihood."
    )


def tempered_log_prob(site: Mapping[str, Any]) -> Tensor:
    """log-density at a site, scaled and masked."""
    return temper(log_prob(site), site["scale"], site["mask"])


def temper(value: Tensor, scale: Any, mask: Any) -> Tensor:
    """Apply the user's poutine.scale and poutine.mask to a log-density (zero where masked)."""
    if mask is False:
        return torch.zeros_like(value)
    if not is_one(scale):
        value = value * scale
    if mask is None or mask is True:
        return value
    return torch.where(mask, value, value.new_zeros(()))


def align(value: Tensor, nesting: int) -> Tensor:
    """A log-density with all dimensions of (K, plates); absent ones have size 1."""
    rank = 1 + nesting
    return value.reshape((1,) * (rank - value.dim()) + tuple(value.shape)[-rank:])


def table(value: Tensor, nesting: int, data_dim: int | None) -> Tensor:
    """Sum a log-density over all dimensions except particles and rows: (K, B).

    `value` has at most 1 + nesting dimensions, the leftmost of particles. An absent dimension has
    size 1 in the result.
    """
    rank = 1 + nesting
    value = align(value, nesting)
    keep = rank + data_dim if data_dim is not None else None
    summed = [d for d in range(1, rank) if d != keep]
    if summed:
        value = value.sum(summed)
    return value if value.dim() == 2 else value.unsqueeze(-1)


def check_batch_shape(site: Mapping[str, Any]) -> None:
    """Require a plate for every batch dimension; otherwise rows would be summed into one.

    Dimensions to the right of a plate are values of one member, as in Pyro.
    """
    dims = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    parts = {
        "batch": (log_prob(site), "Add .to_event({}) to the distribution, or put"),
        "mask": (site["mask"], "Give the mask the dimensions of the site's plates, or put"),
        "scale": (site["scale"], "Give the scale the dimensions of the site's plates, or put"),
    }
    for part, (value, remedy) in parts.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        for dim in range(-len(shape), min(dims, default=0)):
            if shape[dim] > 1 and dim not in dims:
                raise ValueError(
                    f"Site '{site['name']}' has {part} shape {shape}, but no plate declares its "
                    f"dimension {dim} of size {shape[dim]}. {remedy.format(-dim)} the site inside "
                    "a plate."
                )
