"""Run one eager step under a tape.

A recorded step differs from Pyro's in four points, which change nothing but rounding:

- `Tensor.item()` returns the detached tensor, so that a loss stays in the list of operations. In
  the user's code it returns a copy, and a number where a tensor would calculate otherwise.
- Pyro's warnings about NaN, which read every value, are off, and so is validation, also that of
  distributions made before by `expand`, which have a switch each.
- `Dice.compute_expectation` reads whether a probability is zero and then omits its cost. Here it
  multiplies by zero instead, so that no shape depends on the data.
- Chains of enumerated variables are eliminated from both ends (`markov_chains`).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pyro
import pyro.util
import torch
from pyro.infer.util import Dice
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.capture.gradient_hooks import has_hooks, without_hooks
from ppl_lvm.compiler.capture.markov_chains import fast_markov_elimination
from ppl_lvm.compiler.capture.tape import TapeRecorder
from ppl_lvm.compiler.graph.ir import Ref, Tape
from ppl_lvm.compiler.source_lines import error_line, user_line
from ppl_lvm.core.dynamo import without_dynamo
from ppl_lvm.core.errors import CannotCaptureError
from ppl_lvm.core.frames import in_package, is_users, module_name

RUNS_INSIDE_PROGRAMS = True  # its frames lie inside the user's, see `source_lines.user_line`

_TO_PYTHON = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr)
_DICE = Dice.compute_expectation.__code__


class _KeepTensors(TorchFunctionMode):
    """Keeps values in tensors that Pyro and the program would turn into Python numbers."""

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
            # An integer count in Normal(0.5, n.item()) would make an integer of the 0.5, and
            # doubles would draw other random numbers: both must stay numbers.
            if args[0].dtype == torch.get_default_dtype():
                return args[0].detach().clone()
        if func is one_hot:
            return _one_hot(*args, **kwargs)
        if func in _TO_PYTHON and args[0] is not None:
            self._recorder.read(args[0], func, user_line(sys._getframe(1)))
        elif sys._getframe(1).f_code is _DICE:
            if func is Tensor.all:
                return False  # "some probability may be zero", without reading it
            if func is Tensor.masked_select:
                return torch.where(args[1], args[0], torch.zeros_like(args[0]))
        return func(*args, **kwargs)


def _never(value: Any) -> bool:
    return False


def _accept(distribution: Distribution, value: Any) -> None:
    """In place of torch's validation of values."""


def _one_hot(index: Tensor, num_classes: int = -1) -> Tensor:
    """`torch.nn.functional.one_hot`, whose check of the range is here that of an embedding."""
    if num_classes < 0:
        return one_hot(index, num_classes)
    return torch.embedding(torch.eye(num_classes, dtype=torch.int64, device=index.device), index)


@contextmanager
def _pyro_checks_off() -> Iterator[None]:
    with (
        pyro.validation_enabled(False),
        patch.object(Tensor, "register_hook", _refuse_hook),
        patch.object(Distribution, "_validate_sample", _accept),
        patch.object(pyro.util, "torch_isnan", _never),
        patch.object(pyro.util, "torch_isinf", _never),
    ):
        yield


_register_hook = Tensor.register_hook


def _refuse_hook(tensor: Tensor, hook: Any) -> Any:
    frame = sys._getframe(1)
    while in_package(module_name(frame), "torch") and frame.f_back is not None:
        frame = frame.f_back  # torch.autograd.graph.register_multi_grad_hook
    if is_users(frame):
        raise CannotCaptureError(
            "the program registers a gradient hook, whose side effects a recording lacks",
            user_line(frame),
        )
    return _register_hook(tensor, hook)


def record(
    step: Callable[[], Any], parameters: Sequence[Tensor], batch: Sequence[Tensor]
) -> tuple[Any, Tape]:
    """Run `step()`, which leaves gradients in the parameters' `.grad`, and record its operations.

    Args:
        step: returns the loss, a number or tensor or a tuple of them.
        parameters: leaf tensors; their `.grad` is cleared first.
        batch: tensors that `step` passes to the program.

    Returns:
        The loss, with tensors where the program converts them to numbers, and the tape.
    """
    for parameter in parameters:
        parameter.grad = None
    recorder = TapeRecorder([*parameters, *batch])
    hooked = [place for place, p in enumerate(parameters) if p.requires_grad and has_hooks(p)]
    notes: list[tuple[int, Any]] = []  # a hooked parameter, the index of its gradient
    try:
        with (
            without_dynamo(TapeRecorder.__torch_dispatch__),
            _pyro_checks_off(),
            fast_markov_elimination(),
            without_hooks(parameters),
            _noting_gradients({place: parameters[place] for place in hooked}, recorder, notes),
            _KeepTensors(recorder),
            recorder,
        ):
            loss = step()
    except CannotCaptureError:
        recorder.undo()
        raise
    except Exception as error:
        recorder.undo()
        reason = f"recording the step failed: {type(error).__name__}: {error}"
        raise CannotCaptureError(reason, error_line(error)) from error
    tape = recorder.tape
    tape.gradients = [_gradient_index(recorder, p) for p in parameters]
    tape.hooked = [place for place, _ in notes]
    for place, index in notes:
        if tape.hooked.count(place) > 1 or not _is_same(tape, tape.gradients[place], index):
            recorder.undo()
            raise CannotCaptureError(
                "a parameter has a gradient hook, and its gradient comes from several backward "
                "passes or is changed after them"
            )
    tape.losses = loss
    tape.results = pytree.tree_map(
        lambda value: recorder.ref(value) if isinstance(value, Tensor) else value, loss
    )
    recorder.finish()
    return loss, tape


@contextmanager
def _noting_gradients(
    parameters: dict[int, Tensor], recorder: TapeRecorder, notes: list[tuple[int, Any]]
) -> Iterator[None]:
    """Note each time that a gradient reaches one of these parameters."""

    def note(place: int, gradient: Tensor) -> None:
        notes.append((place, recorder.ref(gradient)))

    handles = [p.register_hook(partial(note, place)) for place, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_COPIES = ("detach", "clone", "alias")


def _is_same(tape: Tape, final: int | None, gradient: Ref | None) -> bool:
    """True if the gradient that a step leaves is this one, or a copy of it."""
    origins = {result: call for call in tape.calls for result in call.results}
    while gradient is not None and final is not None and final != gradient.index:
        call = origins.get(final)
        copies = call is not None and getattr(call.op, "_opname", "") in _COPIES
        final = call.leaves[0].index if call is not None and copies else None
    return gradient is not None and final is not None


def _gradient_index(recorder: TapeRecorder, parameter: Tensor) -> int | None:
    if parameter.grad is None:
        return None
    ref = recorder.ref(parameter.grad)
    if ref is None or parameter.grad.layout is not torch.strided:
        raise CannotCaptureError(
            f"the gradient of a parameter of shape {tuple(parameter.shape)} is not an ordinary "
            "tensor made in this step (sparse gradients cannot be captured)"
        )
    return ref.index
