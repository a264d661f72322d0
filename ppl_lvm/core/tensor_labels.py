"""Labels of tensors, followed through operations by shared memory.

A subclass says what a label is and how the labels of the arguments of an operation combine. Values
play no part: 0·z depends on z.
"""

import sys
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Label = TypeVar("Label")

_TO_PYTHON = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
    *(torch.equal, torch.allclose, torch.is_nonzero, Tensor.equal, Tensor.allclose),
}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__}


class FollowLabels(TorchDispatchMode, Generic[Label]):
    """Follow labeled tensors through the operations of a run.

    Attributes:
        is_unknown: a labeled tensor became a Python number or decided a branch, so that all later
            results may depend on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_unknown = False
        self._memory: dict[int, tuple[Any, Label]] = {}  # storages, held to stay unique: labels
        self._conversions = _WatchConversions(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes seconds; see _run_eagerly

    def __enter__(self) -> Any:
        self._eager = _run_eagerly()
        self._eager.__enter__()
        super().__enter__()
        self._conversions.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._conversions.__exit__(*error)
        super().__exit__(*error)
        self._eager.__exit__(*error)

    @abstractmethod
    def is_labeled(self, values: Any) -> bool:
        """True if a tensor in a nested structure has a label."""

    def _recall(self, tensor: Any) -> Label | None:
        """The label of a tensor's memory."""
        if not is_strided(tensor):
            return None
        return self._memory.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def _store(self, tensor: Tensor, label: Label) -> None:
        storage = tensor.untyped_storage()
        self._memory[storage._cdata] = storage, label


class _WatchConversions(TorchFunctionMode):
    """Notice a labeled tensor that becomes a Python object without an operation."""

    def __init__(self, labels: FollowLabels[Any]) -> None:
        super().__init__()
        self._labels = labels

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        labels = self._labels
        result = func(*args, **(kwargs or {}))
        if func in _TO_PYTHON and labels.is_labeled(args) and not in_distribution():
            labels.is_unknown = True
        if func not in _INDEXED:
            return result
        # An index () becomes a number, but what is read or written there is known.
        numbers = [i for i in pytree.tree_leaves(args[1]) if isinstance(i, Tensor) and not i.dim()]
        for number in [i for i in numbers if labels.is_labeled(i)]:
            read = args[0] if result is None else result
            mixed = torch.where(number == number, read, read)
            if result is None:
                read.copy_(mixed)
            else:
                result = mixed
        return result


def in_distribution() -> bool:
    """True inside the code of a distribution of torch or Pyro, which keeps rows independent.

    Its loops, branches and masks choose how a row is computed and not what it depends on.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(("torch.distributions.", "pyro.distributions.")):
            return True
        if not name.startswith(("torch.", "pyro.ops.", "ppl_lvm.", "functools", "contextlib")):
            return False
        frame = frame.f_back
    return False


def is_strided(value: Any) -> bool:
    """True for tensors whose elements have an address."""
    return isinstance(value, Tensor) and value.layout is torch.strided


def _run_eagerly() -> AbstractContextManager[Any]:
    """A scope in which functions compiled by torch.compile run as they are written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
