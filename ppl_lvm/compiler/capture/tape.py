"""Tape recorder: every torch operation of a step, in order.

A step of a Pyro program is Python (handlers, plates, traces) around a list of tensor operations.
The tape lists each operation, forward and backward, with its arguments and results; every tensor
is replaced by an index. Two properties are read off it:

- *The list can be replayed* if no operation returns a number of the data to Python and no shape
  depends on the data. `graph.build` makes a graph of it.
- *The list is the same at the next step* if the tapes of two steps agree, operation by operation
  (`tape_diff`).

Tensors that the step reads and did not create are its `sources`: parameters, batch, buffers, data
in a closure, a running average.
"""

import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ppl_lvm.compiler.graph.ir import Call, Constant, Ref, Source, Tape
from ppl_lvm.compiler.source_lines import user_line

RUNS_INSIDE_PROGRAMS = True  # its frames lie inside the user's, see `source_lines.user_line`

_FRESH = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


class TapeRecorder(TorchDispatchMode):
    """Fills a `Tape` while the step runs; the step computes what it would compute without it."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.tape = Tape(tuple(tensor.dtype for tensor in inputs))
        self._indices: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._results: list[tuple[int, weakref.ref[Tensor]]] = []
        self._next = len(inputs)
        self._lines: dict[int, str | None] = {}  # of operations that have a gradient
        for index, tensor in enumerate(inputs):
            self._indices[tensor] = index

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        where = self._line(user_line(sys._getframe(1)))
        if func in _FRESH and args[0] not in self._indices:
            return self._record_constant(args[0], where)
        flat, spec = pytree.tree_flatten((args, kwargs))
        leaves = [self._ref(a, where) if isinstance(a, Tensor) else a for a in flat]
        out = func(*args, **kwargs)
        call = Call(func, leaves, spec, [], [], False, where)
        for value in pytree.tree_leaves(out):
            self._record_result(value, call)
        self.tape.calls.append(call)
        return out

    def _line(self, where: str | None) -> str | None:
        """The user's line; in a backward pass that of the operation whose gradient is taken.

        Autograd numbers its nodes in the order of the operations.
        """
        node = torch._C._current_autograd_node()
        if node is None:
            self._lines.setdefault(torch.autograd._get_sequence_nr() - 1, where)
        elif where is None:
            where = self._lines.get(node._sequence_nr())
        return where

    def _record_result(self, value: Any, call: Call) -> None:
        if isinstance(value, Tensor):
            call.results.append(self._index(value))
            call.shapes.append((value.shape, value.dtype))
        elif value is not None:
            call.reads = True
            call.shapes.append((type(value),))

    def read(self, tensor: Tensor, op: Any, where: str | None) -> None:
        """Record that Python read a tensor through a call that torch does not dispatch."""
        ref = self._ref(tensor, where)
        spec = pytree.tree_structure(((ref,), {}))
        self.tape.calls.append(Call(op, [ref], spec, [], [], True, where))

    def ref(self, tensor: Tensor) -> Ref | None:
        """The index of a tensor, None if the step did not use it."""
        return Ref(self._indices[tensor]) if tensor in self._indices else None

    def undo(self) -> None:
        """Restore the values that the sources had before the step."""
        with torch.no_grad():
            for source in self.tape.sources:
                source.tensor.copy_(source.before)

    def finish(self) -> None:
        """Collect the results that are still referenced: state carried to the next step."""
        for index, reference in self._results:
            tensor = reference()
            if tensor is not None:
                self.tape.live_results[index] = tensor
        self._results.clear()

    def _record_constant(self, tensor: Tensor, where: str | None) -> Tensor:
        index = self._index(tensor)
        self.tape.constants[index] = Constant(index, tensor.detach().clone(), where)
        return tensor

    def _index(self, tensor: Tensor) -> int:
        index = self._indices.get(tensor)
        if index is None:  # an in-place operation returns a tensor that has its index already
            index = self._indices[tensor] = self._next
            self._results.append((index, weakref.ref(tensor)))
            self._next += 1
        return int(index)

    def _ref(self, tensor: Tensor, where: str | None) -> Ref:
        index = self._indices.get(tensor)
        if index is None:
            index = self._indices[tensor] = self._next
            self._next += 1
            before = tensor.detach().clone()
            self.tape.sources.append(Source(tensor, index, before, where))
        return Ref(int(index))
