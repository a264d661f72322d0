"""Loop over compiled steps in C++.

Inductor's machine code of a step has an entry in C++, which it calls through Python once a step.
Around the kernels of a small program that takes longer than they do. The loop below calls the entry
itself: it gathers the rows of each batch, sets the numbers that change from step to step, and
stores the losses, so that the steps are the same bit for bit. It does not depend on the program,
includes no header of torch's, and is built once per machine, in half a second.

The entry takes handles of tensors (`AtenTensorHandle` of torch's stable C interface). It deletes
those of its arguments, so that each step has new ones.
"""

import ctypes
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ppl_lvm.compiler.backend.numerics import equal_to_rounding
from ppl_lvm.core.rng import generator_states, restore_generators

logger = logging.getLogger("ppl_lvm.compiler")

_ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
_HANDLES = "unsafe_alloc_void_ptrs_from_tensors"  # of `torch._C._aoti`
_MESSAGE = 1024

_SOURCE = """
#include <cstdint>
#include <cstring>
#include <exception>

using Handle = void*;
struct Copy { char* to; const char* from; int64_t bytes; };
struct Loop {
  void (*entry)(Handle*, Handle*);
  int32_t (*new_handle)(Handle, Handle*);
  int32_t (*data_pointer)(Handle, void**);
  int32_t (*delete_handle)(Handle);
  int (*check_signals)();
  void* (*python_error)();
  int64_t num_inputs, num_losses;
  Handle *inputs, *arguments, *results;
  const int64_t* loss_bytes;
};

// Takes steps until an error of C++ (which it describes) or Python; `done` is their number.
extern "C" void run_steps(const Loop* loop, int64_t count, const int64_t* rows, int64_t num_rows,
                          int64_t num_data, const Copy* batch, int64_t num_batch,
                          const Copy* schedules, int64_t num_schedules, char* const* losses,
                          int64_t* done, char* message, int64_t message_bytes) {
  if (rows == nullptr)
    for (int64_t d = 0; d < num_batch; ++d)
      std::memcpy(batch[d].to, batch[d].from, batch[d].bytes);
  for (*done = 0; *done < count;) {
    const int64_t step = *done;
    for (int64_t r = 0; rows != nullptr && r < num_rows; ++r) {
      const int64_t row = rows[step * num_rows + r];
      if (row < 0 || row >= num_data) {
        std::strncpy(message, "index out of range", message_bytes - 1);
        return;
      }
      for (int64_t d = 0; d < num_batch; ++d)
        std::memcpy(batch[d].to + r * batch[d].bytes, batch[d].from + row * batch[d].bytes,
                    batch[d].bytes);
    }
    for (int64_t s = 0; s < num_schedules; ++s)
      std::memcpy(schedules[s].to, schedules[s].from + step * schedules[s].bytes,
                  schedules[s].bytes);
    for (int64_t i = 0; i < loop->num_inputs; ++i)
      loop->new_handle(loop->inputs[i], &loop->arguments[i]);
    for (int64_t k = 0; k < loop->num_losses; ++k) loop->results[k] = nullptr;
    try {
      loop->entry(loop->arguments, loop->results);
    } catch (const std::exception& error) {
      std::strncpy(message, error.what(), message_bytes - 1);
      return;
    } catch (...) {
      std::strncpy(message, "unknown error", message_bytes - 1);
      return;
    }
    if (loop->python_error() != nullptr) return;
    for (int64_t k = 0; k < loop->num_losses; ++k) {
      void* value = nullptr;
      loop->data_pointer(loop->results[k], &value);
      std::memcpy(losses[k] + step * loop->loss_bytes[k], value, loop->loss_bytes[k]);
      loop->delete_handle(loop->results[k]);
    }
    ++*done;
    if (loop->check_signals() != 0) return;
  }
}
"""


class _Copy(ctypes.Structure):
    """Bytes to copy at each step."""

    _fields_ = (("to", ctypes.c_void_p), ("source", ctypes.c_void_p), ("bytes", ctypes.c_int64))


_FUNCTIONS = (
    "entry",
    "new_handle",
    "data_pointer",
    "delete_handle",
    "check_signals",
    "python_error",
)


class _Loop(ctypes.Structure):
    """The parts of a loop that stay."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
        ("num_inputs", ctypes.c_int64),
        ("num_losses", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("inputs", "arguments", "results", "loss_bytes")),
    )


@cache
def _run_steps() -> Any:
    """The function of `_SOURCE`, built if this machine has not built it yet."""
    from torch._inductor.codecache import CppCodeCache

    path = CppCodeCache.load(_SOURCE)._name
    function = ctypes.PyDLL(path).run_steps  # with the GIL, which the entry releases
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.restype = None
    function.argtypes = [
        *(pointer, number, pointer, number, number),
        *(pointer, number, pointer, number),
        *(pointer, pointer, pointer, number),
    ]
    return function


@dataclass
class NativeEntry:
    """The entry of a compiled function.

    Attributes:
        library: that has it.
        order: of the function's arguments, as the entry takes them.
        results: examples of the results.
    """

    library: ctypes.PyDLL
    order: list[int]
    results: list[Tensor]


class NativeLoop:
    """Steps of one compiled function on its tensors.

    Args:
        entry: of the function.
        inputs: its arguments; those at `places` are the batch.
    """

    def __init__(self, entry: NativeEntry, inputs: Sequence[Tensor], places: range) -> None:
        self._run = _run_steps()
        tensors = list(inputs)
        for place in places:
            tensors[place] = torch.empty_like(inputs[place])
        self._tensors, self._batch = tensors, [tensors[place] for place in places]
        self._results = [(result.shape, result.dtype) for result in entry.results]
        library, python = entry.library, ctypes.pythonapi
        functions = (
            getattr(library, _ENTRY),
            library.aoti_torch_new_tensor_handle,
            library.aoti_torch_get_data_ptr,
            library.aoti_torch_delete_tensor_object,
            python.PyErr_CheckSignals,
            python.PyErr_Occurred,
        )
        self._delete = library.aoti_torch_delete_tensor_object
        handles = _handles([tensors[place] for place in entry.order])
        self._arrays = (  # in memory as long as the loop
            (ctypes.c_void_p * len(handles))(*handles),
            (ctypes.c_void_p * len(handles))(),
            (ctypes.c_void_p * len(entry.results))(),
            (ctypes.c_int64 * len(entry.results))(*[r.nbytes for r in entry.results]),
        )
        self._loop = _Loop(
            *[ctypes.cast(function, ctypes.c_void_p) for function in functions],
            len(handles),
            len(entry.results),
            *[ctypes.addressof(array) for array in self._arrays],
        )
        self._copies = (_Copy * len(self._batch))(*[_Copy(t.data_ptr()) for t in self._batch])
        self._done, self._message = ctypes.c_int64(), ctypes.create_string_buffer(_MESSAGE)

    def __del__(self) -> None:
        for handle in getattr(self, "_arrays", ((),))[0]:
            self._delete(ctypes.c_void_p(handle))

    @property
    def done(self) -> int:
        """Steps that the last call took."""
        return self._done.value

    def serves(self, data: Sequence[Tensor], rows: Tensor | None) -> bool:
        """True if batches of these data can be copied row by row."""
        if not all(tensor.is_contiguous() for tensor in data):
            return False
        return rows is None or (rows.dtype is torch.int64 and rows.device.type == "cpu")

    def take(
        self,
        data: Sequence[Tensor],
        rows: Tensor | None,
        count: int,
        schedules: Sequence[tuple[Tensor, Tensor]],
    ) -> list[Tensor]:
        """Take steps under `torch.no_grad`; the losses, each (count, …).

        Args:
            data: tensors that `serves` accepts.
            rows: (count, B) of the data, or None: each step sees all.
            schedules: tensors that are set before each step, and their values (count, …).

        Raises:
            RuntimeError: an operation failed after `done` steps. An interrupt leaves them too.
        """
        losses = [torch.empty((count, *shape), dtype=dtype) for shape, dtype in self._results]
        for copy, tensor in zip(self._copies, data, strict=True):
            copy.source = tensor.data_ptr()
            copy.bytes = tensor.nbytes if rows is None else tensor.nbytes // max(len(tensor), 1)
        if rows is not None:
            rows = rows.contiguous()
        per_step = [_Copy(t.data_ptr(), v.data_ptr(), t.nbytes) for t, v in schedules]
        self._done.value, self._message.value = 0, b""
        self._run(
            ctypes.byref(self._loop),
            count,
            None if rows is None else rows.data_ptr(),
            0 if rows is None else rows.shape[1],
            0 if rows is None else min(map(len, data)),
            self._copies,
            len(data),
            (_Copy * len(per_step))(*per_step),
            len(per_step),
            (ctypes.c_void_p * len(losses))(*[loss.data_ptr() for loss in losses]),
            ctypes.byref(self._done),
            self._message,
            _MESSAGE,
        )
        if self.done < count:
            raise RuntimeError(self._message.value.decode(errors="replace"))
        return losses


@torch.no_grad()
def make_native_loop(
    compiled: Callable[..., Any], inputs: Sequence[Tensor], places: range, mutated: Sequence[Tensor]
) -> NativeLoop | None:
    """The loop for a compiled function of these inputs; None where Python has to call it.

    It is tried on copies, from the same random states as the function.

    Args:
        places: of the batch among the inputs.
        mutated: inputs that the function changes.
    """
    if any(t.device.type != "cpu" or type(t) is not Tensor for t in inputs):
        return None
    batch = [inputs[place] for place in places]
    if not all(t.is_contiguous() for t in batch):
        return None
    changed, random = {id(t) for t in mutated}, generator_states()
    ours, theirs = [[t.clone() if id(t) in changed else t for t in inputs] for _ in range(2)]
    try:
        entry = _find_entry(compiled, theirs)
        if entry is None:
            return None
        restore_generators(random)
        losses = NativeLoop(entry, ours, places).take(batch, None, 1, ())
        if not all(
            map(
                equal_to_rounding, [*(loss[0] for loss in losses), *ours], [*entry.results, *theirs]
            )
        ):
            return None
        return NativeLoop(entry, inputs, places)
    except Exception as error:  # no compiler, or another version of torch
        logger.info("steps are called from Python: %s: %s", type(error).__name__, error)
        return None
    finally:
        restore_generators(random)


def _find_entry(compiled: Callable[..., Any], inputs: list[Tensor]) -> NativeEntry | None:
    """The entry below a compiled function, seen in one call; None if it takes other tensors."""
    allocate = getattr(torch._C._aoti, _HANDLES)
    calls: list[tuple[Any, list[Tensor]]] = []

    def note(tensors: list[Tensor]) -> Any:
        calls.append((sys._getframe(1).f_locals.get("f"), list(tensors)))
        return allocate(tensors)

    with patch.object(torch._C._aoti, _HANDLES, note):
        results = list(compiled(*inputs))
    if len(calls) != 1 or not all(isinstance(r, Tensor) and r.is_contiguous() for r in results):
        return None
    function, tensors = calls[0]
    place = {id(tensor): k for k, tensor in enumerate(inputs)}
    path = getattr(getattr(function, "__self__", None), "__file__", None)
    if path is None or not all(id(tensor) in place for tensor in tensors):
        return None
    library = ctypes.PyDLL(path)
    return NativeEntry(library, [place[id(t)] for t in tensors], results)


def _handles(tensors: list[Tensor]) -> list[int]:
    """New handles of tensors, as numbers."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    capsules = getattr(torch._C._aoti, _HANDLES)(tensors)
    return [pointer(capsule, None) for capsule in capsules]
