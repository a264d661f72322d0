"""Arguments of a step and the key of their capture.

Two calls share one capture if their arguments have the same structure, their tensors have the same
shape, strides, dtype and device, their other values are equal, and all modules are in the same
mode (train or eval).
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.core.errors import CannotCaptureError

_VALUES = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)


@dataclass
class Arguments:
    """Flattened arguments. `key` identifies the capture that serves them."""

    tensors: list[Tensor]
    key: Hashable
    _leaves: list[Any]
    _spec: Any

    @property
    def positional(self) -> bool:
        """True if they are positional tensors and nothing else."""
        return len(self.tensors) == len(self._leaves) and self._spec == _positional(
            len(self._leaves)
        )

    def call(self, function: Callable[..., Any], tensors: list[Tensor]) -> Any:
        """Call a function with these arguments, with their tensors replaced by `tensors`."""
        replacement = iter(tensors)
        leaves = [next(replacement) if isinstance(v, Tensor) else v for v in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return function(*args, **kwargs)


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Separate arguments into tensors and other values.

    Raises:
        CannotCaptureError: an argument is neither a tensor nor a plain value.
    """
    if not kwargs and all(type(a) is Tensor for a in args):  # the common case, fast
        leaves, spec = list(args), _positional(len(args))
        tensors = leaves
    else:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [v for v in leaves if isinstance(v, Tensor)]
    rest = tuple(_value(v) for v in leaves if not isinstance(v, Tensor))
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
    return Arguments(tensors, (spec, shapes, rest), leaves, spec)


@functools.cache
def _positional(count: int) -> Any:
    return pytree.tree_structure(((0,) * count, {}))


def _value(value: Any) -> Hashable:
    if isinstance(value, _VALUES):
        return type(value), value
    raise CannotCaptureError(
        f"an argument is a {type(value).__name__}; a captured step takes tensors, numbers and "
        "strings"
    )
