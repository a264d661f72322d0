"""Parameter, site or row behind a NaN or infinity."""

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import family, layers, unwrap
from ppl_lvm.data import Data
from ppl_lvm.programs.minibatch import frame_size
from ppl_lvm.training.preparation import PreparedPrograms


def locate_non_finite(
    programs: PreparedPrograms, batch: tuple[Tensor, ...], rows: Tensor | None, data: Data
) -> str | None:
    """The first fault on a batch, as a sentence; None where everything is finite.

    The order of the search is parameters, sites of the guide, sites of the model, gradients. Call
    it with the random state of the failed step.

    Args:
        programs: the pair as its objective sees it, with gradients in `.grad`.
        batch: of the failed step.
        rows: row numbers (B,) of the batch; None: all rows.
        data: the training data, which name a row.
    """
    pair, plates = programs.pair, programs.pair.row_plates
    for name, value in pair.parameters().items():
        if not torch.isfinite(value).all():
            return (
                f"parameter {name!r} is {_kind(value)}. Lower the learning rate or clip gradients."
            )
    with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        guide_trace = poutine.trace(programs.guide).get_trace(*batch)
        for name, site in guide_trace.nodes.items():
            reason = _site_at_fault(name, site, "guide", rows, data, plates, None)
            if reason is not None:
                return reason
        model = poutine.replay(programs.model, guide_trace)
        nesting = _nesting(guide_trace, poutine.trace(model).get_trace(*batch))
        # All values of enumerated sites: an impossible one (-inf) is no fault.
        model_trace = poutine.trace(poutine.enum(model, -1 - nesting)).get_trace(*batch)
        for name, site in model_trace.nodes.items():
            reason = _site_at_fault(name, site, "model", rows, data, plates, nesting)
            if reason is not None:
                return reason
    for name, leaf in pair.unconstrained_parameters.items():
        if leaf.grad is not None and not torch.isfinite(leaf.grad).all():
            plain = name.split("/", 1)[1]
            remedy = getattr(pair.objective, "non_finite_hint", "") or (
                "Clip gradients, or look for a square root or a logarithm of zero before it."
            )
            return (
                f"the gradient of parameter {plain!r} is {_kind(leaf.grad)} although every "
                f"log-probability is finite. {remedy}"
            )
    return None


def _nesting(*traces: poutine.Trace) -> int:
    """Number of plate dimensions."""
    nodes = [node for trace in traces for node in trace.nodes.values()]
    frames = [frame for node in nodes for frame in node.get("cond_indep_stack", ())]
    return -min((frame.dim or 0 for frame in frames), default=0)


def _site_at_fault(
    name: str,
    site: dict[str, Any],
    program: str,
    rows: Tensor | None,
    data: Data,
    plates: frozenset[str],
    nesting: int | None,
) -> str | None:
    if site["type"] != "sample" or site_is_subsample(site):
        return None
    fn, value = site["fn"], site["value"]
    where = f"site {name!r} of the {program}"
    for argument in _arguments(fn):
        parameter = _argument(fn, argument)
        if parameter is not None and not torch.isfinite(parameter).all():
            row = _row(site, torch.isfinite(parameter), rows, data, plates)
            return f"{where} has a {argument} that is {_kind(parameter)}{row}."
    if not site["is_observed"] and not torch.isfinite(value).all():
        row = _row(site, value.isfinite(), rows, data, plates)
        return f"{where} drew a value that is {_kind(value)}{row}."
    if site["is_observed"] and torch.isnan(value).any():
        row = _row(site, ~value.isnan(), rows, data, plates)
        return (
            f"{where} observes NaN{row}. A mask hides its log-probability but not its gradient: "
            "replace it as well, obs=x.nan_to_num(1.0) beside poutine.mask(mask=~x.isnan()), or "
            "ppl_lvm.authoring.without_missing."
        )
    log_prob = fn.log_prob(value)
    enumerated = nesting is not None and log_prob.dim() > nesting
    if enumerated:
        log_prob = log_prob.flatten(0, log_prob.dim() - nesting - 1).amax(0)
    if site["is_observed"] and not enumerated:
        supported = fn.support.check(value)
        if not supported.all():
            return (
                f"{where} observes a value outside the support of {family(fn)}"
                f"{_row(site, supported, rows, data, plates)}. "
                "Choose a likelihood for such data or transform it."
            )
    if not torch.isfinite(log_prob).all():
        row = _row(site, log_prob.isfinite(), rows, data, plates)
        return f"{where} has a log-probability that is {_kind(log_prob)}{row}."
    return None


def _arguments(fn: Any) -> list[str]:
    return list(getattr(unwrap(fn), "arg_constraints", {}))


def _argument(fn: Any, name: str) -> Tensor | None:
    value = next((vars(layer)[name] for layer in layers(fn) if name in vars(layer)), None)
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _kind(value: Tensor) -> str:
    return "NaN" if torch.isnan(value).any() else "infinite"


def _row(
    site: dict[str, Any],
    finite: Tensor,
    rows: Tensor | None,
    data: Data,
    plates: frozenset[str],
) -> str:
    """ " at FILE, row R" of the first row that is not finite; empty for a global site."""
    frame = next((f for f in site["cond_indep_stack"] if f.name in plates), None)
    if frame is None or frame.dim is None:
        return ""
    event_dims = finite.dim() - len(site["fn"].batch_shape)
    axis = finite.dim() - max(event_dims, 0) + frame.dim
    size = frame_size(site, frame)
    if not 0 <= axis < finite.dim() or finite.shape[axis] != size:
        return ""
    bad = (~finite).movedim(axis, 0).reshape(size, -1).any(1).nonzero()[0].item()
    row = int(bad) if rows is None else int(rows[int(bad)])
    return f" at {data.locate(row, None)}"
