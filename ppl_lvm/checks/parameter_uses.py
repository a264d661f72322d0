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
        self._values: dict[int, tuple[str, Tensor]] = {}  # the tensor keeps its id taken
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
        self._values[id(value)] = name, value

    def read(self, value: Any, index: Any) -> None:
        """Record that `value` was read at `index`; None reads all of it."""
        if id(value) not in self._values:
            return
        name, parameter = self._values[id(value)]
        use = self._uses[name]
        known = index is not None and parameter.dim() > 0
        rows = _constant_rows(len(parameter), index) if known else None
        use.read = None if rows is None or use.read is None else use.read | rows


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
        elif name not in _QUERIES:
            for value in [*args, *(kwargs or {}).values()]:
                for part in value if isinstance(value, list | tuple) else (value,):
                    self._record.read(part, None)
        return func(*args, **(kwargs or {}))


def _constant_rows(size: int, index: Any) -> set[int] | None:
    first = index[0] if isinstance(index, tuple) and index else index
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
