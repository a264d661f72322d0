"""Uses of parameters inside plates.

Without `event_dim` a parameter has any shape: a shared vector, a table. Its size is wrong where the
program fails at that size, or where one constant row of it is all that is read.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.overrides import TorchFunctionMode

# Functions that return parts of a tensor, with the place of their dimension.
_SPLITS = {"unbind": 1, "split": 2, "chunk": 2, "tensor_split": 2}
_SELECTIONS = {"select": ("index",), "narrow": ("start", "length")}
# Functions and attributes that read no value.
_QUERIES = ("__len__", "dim", "size", "numel", "shape", "ndim", "dtype", "device", "requires_grad")


@dataclass
class ParameterUse:
    """Use of one parameter in a run.

    Attributes:
        shape: its shape.
        plates: the vectorized plates around it.
        event_dim: as the program states it.
        constrained: to other than all real values.
        read: constant indices of its first dimension that were read; None if all may be.
    """

    shape: torch.Size
    plates: tuple[CondIndepStackFrame, ...]
    event_dim: int | None
    constrained: bool = False
    read: set[int] | None = field(default_factory=set)


class RecordParameters(Messenger):
    """Records the parameters of a run in `uses`, by name."""

    def __init__(self, uses: dict[str, ParameterUse]) -> None:
        super().__init__()
        self._uses = uses
        # Of parameters and their parts: name, first row and the tensor, which keeps its id taken.
        self._values: dict[int, tuple[str, int, Tensor]] = {}
        self._reads = _RecordReads(self)

    def __enter__(self) -> Any:
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        result = super().__exit__(*error)
        self._reads.__exit__(*error)
        return result

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if not isinstance(value, Tensor):
            return
        plates = tuple(frame for frame in msg["cond_indep_stack"] if frame.vectorized)
        constrained = msg["kwargs"].get("constraint", constraints.real) is not constraints.real
        use = ParameterUse(value.shape, plates, msg["kwargs"].get("event_dim"), constrained)
        self._uses.setdefault(name, use)
        self._values[id(value)] = name, 0, value

    def read(self, value: Any, index: Any) -> None:
        """Record that `value` was read at `index`; None reads all of it."""
        if id(value) not in self._values:
            return
        name, start, part = self._values[id(value)]
        use = self._uses[name]
        is_row = part.dim() < len(use.shape)  # of unbind
        size = 1 if is_row else len(part) if part.dim() else 0
        rows = _constant_rows(size, part.dim(), None if is_row else index)
        if rows is None and part.shape != use.shape:
            rows = set(range(size))
        if rows is None or use.read is None:
            use.read = None
        else:
            use.read |= {start + row for row in rows}

    def split(self, value: Any, parts: Any) -> None:
        """Record parts of `value` along its first dimension: what is read of each counts."""
        name, start, _ = self._values[id(value)]
        dims = len(self._uses[name].shape)
        for part in parts:
            self._values[id(part)] = name, start, part
            start += 1 if part.dim() < dims else len(part)

    def is_whole(self, value: Any) -> bool:
        """True of a parameter with a first dimension."""
        known = self._values.get(id(value))
        return known is not None and 0 < known[2].dim() == len(self._uses[known[0]].shape)


class _RecordReads(TorchFunctionMode):
    def __init__(self, record: RecordParameters) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of an attribute
            name = getattr(func.__self__, "__name__", "")
        if name == "__getitem__":
            self._record.read(args[0], args[1])
        elif name in _SELECTIONS and _along_first(args, kwargs, 1):
            start, *length = _arguments(args, kwargs, _SELECTIONS[name])
            self._record.read(args[0], slice(start, start + length[0]) if length else start)
        elif name in _SPLITS and args and self._record.is_whole(args[0]):
            parts = func(*args, **(kwargs or {}))
            if _along_first(args, kwargs, _SPLITS[name]):
                self._record.split(args[0], parts)
            else:
                self._record.read(args[0], None)
            return parts
        elif name not in _QUERIES:
            for value in [*args, *(kwargs or {}).values()]:
                for part in value if isinstance(value, list | tuple) else (value,):
                    self._record.read(part, None)
        return func(*args, **(kwargs or {}))


def _along_first(args: Any, kwargs: Any, place: int) -> bool:
    """True if the dimension, the argument at this place or `dim`, is a tensor's first."""
    dim = (kwargs or {}).get("dim", args[place] if len(args) > place else 0)
    return bool(args) and isinstance(args[0], Tensor) and dim in (0, -args[0].dim())


def _arguments(args: Any, kwargs: Any, names: tuple[str, ...]) -> list[Any]:
    """Arguments of these names, after a tensor and its dimension."""
    return [(kwargs or {}).get(n, args[i] if len(args) > i else 0) for i, n in enumerate(names, 2)]


def _constant_rows(size: int, dims: int, index: Any) -> set[int] | None:
    """Rows that a constant index reads; None if it may be all."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts and parts[0] is Ellipsis and len(parts) == dims + 1:
        parts = parts[1:]
    first = parts[0] if parts and dims else None
    if isinstance(first, list) and all(type(row) is int for row in first):
        return {range(size)[row] for row in first}
    if isinstance(first, bool) or not isinstance(first, int | slice):
        return None
    rows = range(size)[first]
    return {rows} if isinstance(rows, int) else set(rows)


def wrong_size(uses: dict[str, ParameterUse], reason: str) -> tuple[str, str, str, int] | None:
    """Parameter, message, remedy and size, where a message about sizes is about a parameter."""
    numbers = {int(number) for number in re.findall(r"\d+", reason)} - {0, 1}
    for name, use in uses.items():
        for plate in use.plates:
            dims = [i for i, size in enumerate(use.shape) if size in numbers]
            if dims and plate.size in numbers and plate.size not in use.shape:
                size = use.shape[dims[-1]]
                message = (
                    f"The parameter {name!r} of shape {tuple(use.shape)} has {size} values inside "
                    f"plate {plate.name!r} of {plate.size} rows"
                )
                remedy = f"{one_for_each_row(name, use, plate, dims[-1])}, one value for each row"
                return name, message, remedy, size
    return None


def one_for_each_row(name: str, use: ParameterUse, plate: CondIndepStackFrame, dim: int) -> str:
    """Code of the parameter with a value for each row at dimension `dim`."""
    shape = list(use.shape)
    shape[dim] = plate.full_size or plate.size
    sizes = ", ".join(map(str, shape))
    value = "torch.ones" if use.constrained else "torch.zeros"
    return f"pyro.param({name!r}, {value}({sizes}), event_dim={len(shape) - 1 - dim})"
