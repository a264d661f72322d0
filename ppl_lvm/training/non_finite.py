"""Parameter, site or row behind a NaN or infinity."""

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.core.distributions import family, layers, unwrap
from ppl_lvm.core.errors import is_numerical
from ppl_lvm.core.frames import is_users, traceback_frames
from ppl_lvm.core.messages import reason_of
from ppl_lvm.data import Data
from ppl_lvm.programs.minibatch import frame_size
from ppl_lvm.programs.signatures import describe
from ppl_lvm.training.preparation import PreparedPrograms

AT_FAULT = ("parameter", "the model fails", "the guide fails")  # of faults of the parameters
LARGE = 1e15  # its square overflows in single precision, nearly
REMEDY = "Lower the learning rate, clip gradients (clip_norm=10), or use double precision."


def unlocated(error: Exception) -> str:
    """Sentence on a failure that no parameter, site or gradient explains."""
    if isinstance(error, RuntimeError):
        return f"{reason_of(error).rstrip('.')}. {REMEDY}"
    return "the loss or a gradient is not finite."


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
        guide_trace, failure = _trace_until_failure(programs.guide, batch)
        for name, site in guide_trace.nodes.items():
            reason = _site_at_fault(name, site, "guide", rows, data, plates, None)
            if reason is not None:
                return reason
        if failure is not None:
            return _failure(failure, guide_trace, "guide")
        model = poutine.replay(programs.model, guide_trace)
        model_trace, failure = _trace_until_failure(model, batch)
        nesting = _nesting(guide_trace, model_trace)
        if failure is None:
            # All values of enumerated sites: an impossible one (-inf) is no fault.
            enumerated = poutine.enum(model, -1 - nesting)
            model_trace, failure = _trace_until_failure(enumerated, batch)
        for name, site in model_trace.nodes.items():
            reason = _site_at_fault(name, site, "model", rows, data, plates, nesting)
            if reason is not None:
                return reason
        if failure is not None:
            return _failure(failure, model_trace, "model")
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


def _trace_until_failure(
    program: Any, batch: tuple[Tensor, ...]
) -> tuple[poutine.Trace, Exception | None]:
    """Trace of a program, to the sites before its numerical failure, and that failure."""
    with poutine.trace() as traced:
        try:
            program(*batch)
        except (ValueError, RuntimeError) as error:
            if not is_numerical(error):
                raise
            return traced.trace, error
    return traced.trace, None


def _failure(error: Exception, trace: poutine.Trace, program: str) -> str:
    """Sentence on a program that fails after the sites of its trace."""
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    place = f"after site {sites[-1]!r}" if sites else "before its first site"
    lines = [(f.f_code.co_filename, n) for f, n in traceback_frames(error) if is_users(f)]
    where = f" ({lines[-1][0]}:{lines[-1][1]})" if lines else ""
    short = (str(error).splitlines() or [""])[0].rstrip(".")
    return (
        f"the {program} fails {place}{where}: {short}. {REMEDY} A factorization needs a floor "
        "under the variances."
    )


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
            return f"{where} has a {argument} that is {_kind(parameter)}{row}. {_remedy(parameter)}"
        valid = None if parameter is None else _valid(fn, argument, parameter)
        if parameter is not None and valid is not None and not valid.all():
            row = _row(site, valid, rows, data, plates)
            constraint = describe(unwrap(fn).arg_constraints[argument])
            return (
                f"{where} has a {argument} that must be {constraint} and is not{row}. Give its "
                f"parameter a constraint, or its output a softplus or exp(). {REMEDY}"
            )
    if not site["is_observed"] and not torch.isfinite(value).all():
        row = _row(site, value.isfinite(), rows, data, plates)
        return f"{where} drew a value that is {_kind(value)}{row}. {_remedy(value)}"
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
        return f"{where} has a log-probability that is {_kind(log_prob)}{row}. {_remedy(value)}"
    return None


def _remedy(value: Tensor) -> str:
    """Remedy by the size of the numbers at fault."""
    if (value.abs() > LARGE).any() and not value.isnan().any():
        return (
            "Its numbers overflow: standardize the columns of the data, bound the argument of an "
            f"exponential (.clamp(max=20)), or use double precision. {REMEDY}"
        )
    return REMEDY


def _valid(fn: Any, argument: str, value: Tensor) -> Tensor | None:
    """True where an argument satisfies its constraint; None if it is not elementwise."""
    constraint = unwrap(fn).arg_constraints[argument]
    if constraints.is_dependent(constraint) or getattr(constraint, "event_dim", 0):
        return None
    valid: Tensor = constraint.check(value)
    return valid


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
