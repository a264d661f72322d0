"""Comparison of the tapes of two steps, operation by operation.

Two steps may differ in the values of the parameters, of the batch and of the tensors that the
program keeps. A captured step would freeze everything else: a Python number that changes (a
counter, an annealed weight), another branch, a tensor replaced by one created
outside torch. Each shows here as the first operation that differs.
"""

from typing import Any

import torch

from ppl_lvm.compiler.graph.ir import Call, Constant, Tape
from ppl_lvm.core.errors import CannotCaptureError


def state_pairs(earlier: Tape, later: Tape) -> dict[int, int]:
    """Check that two tapes agree, and find the state that one step hands to the next.

    A program that keeps a running average by binding a name anew reads, in the later step, a
    tensor that the earlier one created. The result maps the index of each such source to the index
    of the tensor that replaces it.

    Raises:
        CannotCaptureError: names the first difference.
    """
    if len(earlier.calls) != len(later.calls):
        _first_difference(earlier, later)
        shorter, longer = sorted((earlier.calls, later.calls), key=len)
        lines = [call.where for call in longer[len(shorter) :] if call.where]
        raise CannotCaptureError(
            f"one step makes {len(earlier.calls)} tensor operations, the next {len(later.calls)}",
            lines[0] if lines else None,
        )
    for a, b in zip(earlier.calls, later.calls, strict=True):
        _check_call(a, b)
    for index, constant in later.constants.items():
        _check_constant(earlier.constants.get(index), constant)
    if earlier.gradients != later.gradients or earlier.results != later.results:
        raise CannotCaptureError("the loss or the gradient comes from another operation each step")
    return _rebound(earlier, later)


def _first_difference(earlier: Tape, later: Tape) -> None:
    for a, b in zip(earlier.calls, later.calls, strict=False):
        _check_call(a, b)


def _check_call(a: Call, b: Call) -> None:
    if a.op is not b.op:
        raise CannotCaptureError(f"one step computes {a.op}, the next {b.op}", b.where or a.where)
    if a.spec != b.spec or len(a.leaves) != len(b.leaves):
        raise CannotCaptureError(f"{b.op} is called in another form each step", b.where)
    for old, new in zip(a.leaves, b.leaves, strict=True):
        if not _equal_arguments(old, new):
            raise CannotCaptureError(
                f"a number in {b.op} changes from step to step ({old} became {new}); keep it in a "
                "tensor that is filled in place, or pass it as a tensor argument",
                b.where,
            )
    if a.shapes != b.shapes:
        raise CannotCaptureError(f"the shape of {b.op}'s result depends on the data", b.where)


def _equal_arguments(old: Any, new: Any) -> bool:
    if type(old) is not type(new):
        return False
    if isinstance(old, torch.Generator):
        return old is new
    return bool(old == new) or (isinstance(old, float) and old != old and new != new)


def _check_constant(old: Constant | None, new: Constant) -> None:
    if old is None or old.value.shape != new.value.shape or old.value.dtype != new.value.dtype:
        raise CannotCaptureError("a tensor made from Python numbers changes its shape", new.where)
    if not torch.equal(old.value.nan_to_num(), new.value.nan_to_num()):
        raise CannotCaptureError(
            "the numbers of a tensor made from Python or NumPy values change from step to step; "
            "keep them in a tensor that is filled in place, or pass them as an argument",
            new.where,
        )


def _rebound(earlier: Tape, later: Tape) -> dict[int, int]:
    """Index of each source that was replaced between the steps -> index of its replacement."""
    results = {id(tensor): index for index, tensor in earlier.live_results.items()}
    pairs: dict[int, int] = {}
    if len(earlier.sources) != len(later.sources):
        lines = [source.where for source in later.sources if source.where]
        line = lines[-1] if lines else None
        raise CannotCaptureError("a step reads other tensors than the one before", line)
    for a, b in zip(earlier.sources, later.sources, strict=True):
        if a.tensor is b.tensor:
            continue
        replacement = results.get(id(b.tensor))
        if a.index != b.index or replacement is None or replacement not in later.live_results:
            raise CannotCaptureError(
                f"reads a tensor of shape {tuple(b.tensor.shape)} that is replaced between steps; "
                "pass it as an argument, or fill one tensor in place",
                b.where,
            )
        pairs[b.index] = replacement
    return pairs
