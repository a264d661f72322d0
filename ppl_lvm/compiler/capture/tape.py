"""A tape: every operation that one step asks of torch, forward and backward, in order.

A step of a Pyro program is Python (handlers, plates, traces) around a list of tensor operations.
The tape keeps that list: the operation, its arguments with every tensor replaced by a number, and
the numbers of its results. Two claims can then be read off it:

- *the list can be replayed* if no operation hands a number of the data back to Python and no
  shape depends on the data (`recording.py` turns it into a graph);
- *the list is the same next time* if the tapes of two steps agree, operation by operation
  (`compare.py`).

Tensors that the step reads without having made them are its `sources`: parameters, batch, and
everything else it finds lying about (buffers, data in a closure, a running average).
"""

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ppl_lvm.compiler.errors import user_line

RUNS_INSIDE_PROGRAMS = True  # its frames stand inside the user's, see `errors.user_line`

_FRESH = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


@dataclass(frozen=True)
class Ref:
    """The number of a tensor on a tape."""

    index: int


@dataclass
class Call:
    """One operation. `leaves` are its flattened arguments, `results` the numbers it made."""

    op: Any
    leaves: list[Any]
    spec: Any
    results: list[int]
    shapes: list[tuple[Any, ...]]  # (shape, dtype) of each result
    reads: bool  # handed a number to Python
    where: str | None

    def arguments(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


@dataclass
class Source:
    """A tensor the step read but did not make; `before` is its value when first read."""

    tensor: Tensor
    index: int
    before: Tensor
    where: str | None


@dataclass
class Constant:
    """A tensor made from Python numbers within the step (`torch.tensor(0.5)`)."""

    index: int
    value: Tensor
    where: str | None


@dataclass
class Tape:
    """What one step did. Numbers 0, 1, … are the parameters, then the batch, of dtypes `given`."""

    given: tuple[torch.dtype, ...]
    calls: list[Call] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    constants: dict[int, Constant] = field(default_factory=dict)
    losses: Any = None  # what the step returned
    results: Any = None  # the same, its tensors replaced by Ref
    gradients: list[int | None] = field(default_factory=list)  # of each parameter
    held: dict[int, Tensor] = field(default_factory=dict)  # results still alive after the step


class TapeRecorder(TorchDispatchMode):
    """Fills a `Tape` while the step runs; the step itself is undisturbed."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.tape = Tape(tuple(tensor.dtype for tensor in given))
        self._numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._made: list[tuple[int, weakref.ref[Tensor]]] = []
        self._next = len(given)
        for index, tensor in enumerate(given):
            self._numbers[tensor] = index

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        where = user_line(sys._getframe(1))
        if func in _FRESH and args[0] not in self._numbers:
            return self._fresh(args[0], where)
        flat, spec = pytree.tree_flatten((args, kwargs))
        leaves = [self._ref(a, where) if isinstance(a, Tensor) else a for a in flat]
        out = func(*args, **kwargs)
        call = Call(func, leaves, spec, [], [], False, where)
        for value in pytree.tree_leaves(out):
            self._result(value, call)
        self.tape.calls.append(call)
        return out

    def _result(self, value: Any, call: Call) -> None:
        if isinstance(value, Tensor):
            call.results.append(self._number(value))
            call.shapes.append((value.shape, value.dtype))
        elif value is not None:
            call.reads = True
            call.shapes.append((type(value),))

    def read(self, tensor: Tensor, op: Any, where: str | None) -> None:
        """Note that Python took the numbers out of a tensor by a way that torch does not see."""
        ref = self._ref(tensor, where)
        spec = pytree.tree_structure(((ref,), {}))
        self.tape.calls.append(Call(op, [ref], spec, [], [], True, where))

    def ref(self, tensor: Tensor) -> Ref | None:
        """The number of a tensor, None if the step did not meet it."""
        return Ref(self._numbers[tensor]) if tensor in self._numbers else None

    def undo(self) -> None:
        """Give the sources the values they had before the step."""
        with torch.no_grad():
            for source in self.tape.sources:
                source.tensor.copy_(source.before)

    def finish(self) -> None:
        """Keep the results that something still holds: state carried to the next step."""
        for index, made in self._made:
            tensor = made()
            if tensor is not None:
                self.tape.held[index] = tensor
        self._made.clear()

    def _fresh(self, tensor: Tensor, where: str | None) -> Tensor:
        index = self._number(tensor)
        self.tape.constants[index] = Constant(index, tensor.detach().clone(), where)
        return tensor

    def _number(self, tensor: Tensor) -> int:
        known = self._numbers.get(tensor)
        if known is None:  # an in-place operation returns a tensor that has its number already
            known = self._numbers[tensor] = self._next
            self._made.append((known, weakref.ref(tensor)))
            self._next += 1
        return int(known)

    def _ref(self, tensor: Tensor, where: str | None) -> Ref:
        known = self._numbers.get(tensor)
        if known is None:
            known = self._numbers[tensor] = self._next
            self._next += 1
            before = tensor.detach().clone()
            self.tape.sources.append(Source(tensor, known, before, where))
        return Ref(int(known))
