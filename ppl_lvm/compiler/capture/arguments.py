"""Arguments of a step and the key of their capture.

Two calls share one capture if their arguments have the same structure, their tensors have the same
shape, strides, dtype and device, their other values are equal, and all modules are in the same
mode (train or eval). A number that keeps changing, such as a KL weight, is passed as a tensor (see
`VaryingNumbers`). Namespaces, dataclasses and classes count by their attributes' plain values.
"""

import functools
from argparse import Namespace
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.core.errors import CannotCaptureError

_VALUES = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
SEVERAL = 3  # values of a number that keeps changing


@dataclass
class Arguments:
    """Flattened arguments.

    Attributes:
        key: of their structure, shapes and values.
        kind: identifies the capture that serves them; of `CapturedGradient.lookup`.
    """

    tensors: list[Tensor]
    key: Hashable
    _leaves: list[Any]
    _spec: Any
    kind: Hashable = None

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


@dataclass
class VaryingNumbers:
    """Places of floats that have had several values, which are passed as tensors.

    Attributes:
        dtype: of these tensors.
    """

    dtype: torch.dtype = torch.float32
    _seen: dict[Hashable, set[float]] = field(default_factory=dict)
    _refused: bool = False

    def note(self, arguments: Arguments) -> bool:
        """Count the values of these arguments; True if a place has just been added."""
        added = False
        for place, value in enumerate(arguments._leaves):
            if type(value) is float and not self._refused:
                values = self._seen.setdefault((arguments._spec, place), set())
                before = len(values)
                if before < SEVERAL:
                    values.add(value)
                added |= before < len(values) == SEVERAL
        return added

    def refuse(self) -> bool:
        """Pass numbers from now on, after a program that needs them; True if any was a tensor."""
        varied = any(len(values) == SEVERAL for values in self._seen.values())
        self._seen.clear()
        self._refused = True
        return varied

    def replace(self, leaves: list[Any], spec: Any) -> list[Any]:
        """The leaves, with tensors in these places."""
        if not self._seen:
            return leaves
        return [
            torch.tensor(value, dtype=self.dtype)
            if type(value) is float and len(self._seen.get((spec, place), ())) == SEVERAL
            else value
            for place, value in enumerate(leaves)
        ]


def flatten(
    args: tuple[Any, ...], kwargs: dict[str, Any], numbers: VaryingNumbers | None = None
) -> Arguments:
    """Separate arguments into tensors and other values.

    Raises:
        CannotCaptureError: an argument is neither a tensor nor a plain value.
    """
    if not kwargs and all(type(a) is Tensor for a in args):  # the common case, fast
        structure: Hashable
        leaves, spec = list(args), _positional(len(args))
        tensors, structure = leaves, len(args)
    else:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        leaves = leaves if numbers is None else numbers.replace(leaves, spec)
        tensors = [v for v in leaves if isinstance(v, Tensor)]
        structure = spec
    rest = tuple(_value(v) for v in leaves if not isinstance(v, Tensor))
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
    return Arguments(tensors, (structure, shapes, rest), leaves, spec)


@functools.cache
def _positional(count: int) -> Any:
    return pytree.tree_structure(((0,) * count, {}))


def _value(value: Any) -> Hashable:
    if isinstance(value, _VALUES):
        return type(value), value
    if isinstance(value, Namespace | SimpleNamespace | type) or is_dataclass(value):
        attributes = [(n, v) for n, v in vars(value).items() if not callable(v)]
        hidden = isinstance(value, type)  # __module__, __dict__, … of a class
        return id(value) if hidden else type(value), tuple(
            (n, _attribute(n, v)) for n, v in attributes if not (hidden and n.startswith("__"))
        )
    if isinstance(value, functools.partial):
        return value.func, _value(value.args), _value(value.keywords)
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_value, value))
    if isinstance(value, dict):
        return dict, tuple((n, _attribute(n, v)) for n, v in value.items())
    raise CannotCaptureError(
        f"an argument is a {type(value).__name__}; a captured step takes tensors, numbers, "
        "strings, and namespaces or dataclasses of these"
    )


def _attribute(name: Any, value: Any) -> Hashable:
    if isinstance(value, Tensor):
        raise CannotCaptureError(
            f"an argument has the tensor {str(name)!r}, which a captured step would not read "
            "again; pass it as an argument"
        )
    return _value(value)
