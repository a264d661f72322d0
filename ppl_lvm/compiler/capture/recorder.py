"""Run one eager step under a tape.

While it is watched, a step differs from Pyro's in four ways, which change nothing but rounding:

- `Tensor.item()` returns the detached tensor, so that a loss stays in the list of operations; in
  the user's own code a copy of it, and a number where a tensor would not calculate like one;
- Pyro's warnings about NaN, which look at every value, are left out, and so is validation;
- `Dice.compute_expectation`, which looks whether a probability is zero to leave out its cost,
  multiplies by zero instead of leaving out, so that no shape depends on the data;
- chains of enumerated variables are summed out from both ends (`chains.py`).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyro
import pyro.util
import torch
from pyro.infer.util import Dice
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.capture.markov_chains import fast_markov_elimination
from ppl_lvm.compiler.capture.tape import Tape, TapeRecorder
from ppl_lvm.compiler.errors import CannotCaptureError, error_line, user_line
from ppl_lvm.core.frames import is_users

RUNS_INSIDE_PROGRAMS = True  # its frames stand inside the user's, see `errors.user_line`

_TO_PYTHON = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr)
_DICE = Dice.compute_expectation.__code__


class _KeepTensors(TorchFunctionMode):
    """Keeps in tensors what Pyro and the program would turn into Python numbers."""

    def __init__(self, recorder: TapeRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.item:
            if not is_users(sys._getframe(1)):
                return args[0].detach()
            # A count in Normal(0.5, n.item()) would make a whole number of the 0.5 beside it, and
            # doubles would draw other random numbers: these must stay numbers.
            if args[0].dtype == torch.get_default_dtype():
                return args[0].detach().clone()
        if func in _TO_PYTHON and args[0] is not None:
            self._recorder.read(args[0], func, user_line(sys._getframe(1)))
        elif sys._getframe(1).f_code is _DICE:
            if func is Tensor.all:
                return False  # "some probability may be zero", without looking
            if func is Tensor.masked_select:
                return torch.where(args[1], args[0], torch.zeros_like(args[0]))
        return func(*args, **kwargs)


def _never(value: Any) -> bool:
    return False


@contextmanager
def _unwatchful_pyro() -> Iterator[None]:
    with (
        pyro.validation_enabled(False),
        patch.object(pyro.util, "torch_isnan", _never),
        patch.object(pyro.util, "torch_isinf", _never),
    ):
        yield


def watch(
    step: Callable[[], Any], parameters: Sequence[Tensor], batch: Sequence[Tensor]
) -> tuple[Any, Tape]:
    """Run `step()`, which leaves gradients in the parameters' `.grad`, and note what it does.

    Args:
        step: returns the loss, a number or tensor or a tuple of them.
        parameters: leaf tensors; their `.grad` is cleared first.
        batch: tensors that `step` passes to the program.

    Returns:
        The loss, with tensors where the program made numbers of them, and the tape.
    """
    for parameter in parameters:
        parameter.grad = None
    recorder = TapeRecorder([*parameters, *batch])
    try:
        with _unwatchful_pyro(), fast_markov_elimination(), _KeepTensors(recorder), recorder:
            loss = step()
    except Exception as error:
        recorder.undo()
        reason = f"recording the step failed: {type(error).__name__}: {error}"
        raise CannotCaptureError(reason, error_line(error)) from error
    tape = recorder.tape
    tape.gradients = [_number_of_gradient(recorder, p) for p in parameters]
    tape.losses = loss
    tape.results = pytree.tree_map(
        lambda value: recorder.ref(value) if isinstance(value, Tensor) else value, loss
    )
    recorder.finish()
    return loss, tape


def _number_of_gradient(recorder: TapeRecorder, parameter: Tensor) -> int | None:
    if parameter.grad is None:
        return None
    ref = recorder.ref(parameter.grad)
    if ref is None or parameter.grad.layout is not torch.strided:
        raise CannotCaptureError(
            f"the gradient of a parameter of shape {tuple(parameter.shape)} is not an ordinary "
            "tensor made in this step (sparse gradients cannot be captured)"
        )
    return ref.index
