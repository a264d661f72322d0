"""Where did the NaN come from? The first parameter, site or data row at fault, by name."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import family, layers, unwrap
from ppl_lvm.data import Data
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.pair import ModelGuidePair


class NonFiniteError(ValueError):
    """A loss, a gradient or a parameter became NaN or infinite; the message says where."""


def locate_non_finite(
    pair: ModelGuidePair,
    programs: tuple[Callable[..., Any], Callable[..., Any], float],
    batch: tuple[Tensor, ...],
    rows: Tensor | None,
    data: Data,
) -> str | None:
    """A sentence that names what is at fault on this batch; None where everything is finite.

    Looks, in this order, at the parameters, at the sites of the guide and of the model in the
    order of the program, and at the gradients. Call it with the random state of the failed step.
    """
    for name, value in pair.parameters().items():
        if not torch.isfinite(value).all():
            return (
                f"parameter {name!r} is {_kind(value)}. Lower the learning rate or clip gradients."
            )
    model, guide, _ = programs
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        drawn = poutine.trace(guide).get_trace(*batch)
        for name, site in drawn.nodes.items():
            reason = _site_at_fault(name, site, "guide", rows, data)
            if reason is not None:
                return reason
        traced = poutine.trace(poutine.replay(model, drawn)).get_trace(*batch)
        for name, site in traced.nodes.items():
            reason = _site_at_fault(name, site, "model", rows, data)
            if reason is not None:
                return reason
    for name, leaf in pair.unconstrained_parameters.items():
        if leaf.grad is not None and not torch.isfinite(leaf.grad).all():
            plain = name.split("/", 1)[1]
            remedy = getattr(pair.objective, "non_finite_hint", "") or (
                "Clip gradients, or look for a square root or a logarithm of zero on the way to it."
            )
            return (
                f"the gradient of parameter {plain!r} is {_kind(leaf.grad)} although every "
                f"log-probability is finite. {remedy}"
            )
    return None


def _site_at_fault(
    name: str, site: dict[str, Any], program: str, rows: Tensor | None, data: Data
) -> str | None:
    if site["type"] != "sample" or site_is_subsample(site):
        return None
    fn, value = site["fn"], site["value"]
    where = f"site {name!r} of the {program}"
    for argument in _arguments(fn):
        parameter = _argument(fn, argument)
        if parameter is not None and not torch.isfinite(parameter).all():
            row = _row(site, torch.isfinite(parameter), rows, data)
            return f"{where} has a {argument} that is {_kind(parameter)}{row}."
    if not site["is_observed"] and not torch.isfinite(value).all():
        row = _row(site, value.isfinite(), rows, data)
        return f"{where} drew a value that is {_kind(value)}{row}."
    if site["is_observed"]:
        inside = fn.support.check(value)
        if not inside.all():
            return (
                f"{where} observes a value outside the support of {family(fn)}"
                f"{_row(site, inside, rows, data)}. "
                "Choose a likelihood for such data or transform it."
            )
    log_prob = fn.log_prob(value)
    if not torch.isfinite(log_prob).all():
        row = _row(site, log_prob.isfinite(), rows, data)
        return f"{where} has a log-probability that is {_kind(log_prob)}{row}."
    return None


def _arguments(fn: Any) -> list[str]:
    return list(getattr(unwrap(fn), "arg_constraints", {}))


def _argument(fn: Any, name: str) -> Tensor | None:
    value = next((vars(layer)[name] for layer in layers(fn) if name in vars(layer)), None)
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _kind(value: Tensor) -> str:
    return "NaN" if torch.isnan(value).any() else "infinite"


def _row(site: dict[str, Any], fine: Tensor, rows: Tensor | None, data: Data) -> str:
    """ " at FILE, row R" of the first row that is not fine; empty for a global site."""
    frame = next((f for f in site["cond_indep_stack"] if f.name == DATA_PLATE), None)
    if frame is None or frame.dim is None:
        return ""
    event_dims = fine.dim() - len(site["fn"].batch_shape)
    axis = fine.dim() - max(event_dims, 0) + frame.dim
    if not 0 <= axis < fine.dim() or fine.shape[axis] != frame.size:
        return ""
    bad = (~fine).movedim(axis, 0).reshape(frame.size, -1).any(1).nonzero()[0].item()
    row = int(bad) if rows is None else int(rows[int(bad)])
    return f" at {data.locate(row, None)}"
