"""A device that needs no hardware: real numbers on the CPU that may not meet the CPU's own.

    with another_device() as there:
        fit(VAE, None, there(x))        # every tensor where its data are, or `MisplacedError`

Tensors say that they lie on the device "meta". What is computed of them is computed on the CPU, so
that a program runs to its end and gives the numbers that it gives there, bit for bit. Operations
that a GPU would refuse raise: tensors of both devices in one (numbers without a dimension aside,
where they are not joined), a table of the CPU read by an index from elsewhere, arrays of what has
not been fetched, a generator of the CPU for draws elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

THERE = torch.device("meta")
_aten = torch.ops.aten
_JOINS = (_aten.cat.default, _aten.stack.default)
_MAY_MEET = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class MisplacedError(RuntimeError):
    """Tensors of two devices have met."""


class _Elsewhere(Tensor):
    """`real` lies on the CPU."""

    real_: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "_Elsewhere":
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=THERE,
        )
        made.real_ = real
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = _Elsewhere(self.real_.detach().clone())
        if isinstance(self, nn.Parameter):
            copy = nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return copy

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _real(value: Any) -> Any:
    return value.real_ if isinstance(value, _Elsewhere) else value


def _put(value: Any) -> Any:
    plain = isinstance(value, Tensor) and not isinstance(value, _Elsewhere)
    return _Elsewhere(value) if plain else value


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat = pytree.tree_leaves((args, kwargs))
    there = [a for a in flat if isinstance(a, _Elsewhere)]
    here = [a for a in flat if isinstance(a, Tensor) and not isinstance(a, _Elsewhere)]
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    goes = bool(there) if asked is None else torch.device(asked) == THERE
    if func is _aten.copy_.default:
        goes = isinstance(args[0], _Elsewhere)
    elif func is not _aten._to_copy.default:
        _refuse(func, args, flat, there, here, goes)
    out = func(*pytree.tree_map(_real, args), **pytree.tree_map(_real, kwargs))
    if func._schema.is_mutable and isinstance(out, Tensor):
        return next((a for a in (*there, *here) if _real(a) is out), out)
    return pytree.tree_map(_put, out) if goes else out


def _refuse(
    func: Any,
    args: tuple[Any, ...],
    flat: list[Any],
    there: list[_Elsewhere],
    here: list[Tensor],
    goes: bool,
) -> None:
    table = func in _MAY_MEET and isinstance(args[0], _Elsewhere)  # by an index of the CPU
    if there and any(t.dim() > 0 or func in _JOINS for t in here) and not table:
        raise MisplacedError(f"{func} of {[tuple(t.shape) for t in here]} and what lies elsewhere")
    if there and func._schema.is_mutable and any(args[0] is tensor for tensor in here):
        raise MisplacedError(f"{func} writes on the CPU what lies elsewhere")
    if goes and any(isinstance(a, torch.Generator) for a in flat):
        raise MisplacedError(f"{func} draws elsewhere from a generator of the CPU")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What torch does before it comes to operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if not isinstance(first, _Elsewhere):
            asked = kwargs.get("device")
            if func not in (torch.tensor, torch.as_tensor) or asked is None:
                return func(*args, **kwargs)
            made = func(*args, **{**kwargs, "device": "cpu"})
            return _put(made) if torch.device(asked) == THERE else made
        if func is Tensor.new_tensor:
            return _put(torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs}))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            if not isinstance(args[1], _Elsewhere):
                raise MisplacedError("a parameter's numbers are replaced by the CPU's")
            first.real_ = args[1].real_
            return None
        if func is Tensor.tolist:
            return first.real_.tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise MisplacedError("an array of what lies elsewhere")
        return func(*args, **kwargs)


def _to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`: parameters stay the objects that they were, as on a GPU."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    for part in module.modules():
        for kept in (*part._parameters.values(), *part._buffers.values()):
            if kept is None or is_lazy(kept):
                continue
            real = _real(kept).detach()
            if dtype is not None and real.is_floating_point() and real.dtype is not dtype:
                real = real.to(dtype)
            moved = _Elsewhere(real) if device == THERE or isinstance(kept, _Elsewhere) else real
            if type(moved) is not type(kept.detach()) or moved.dtype is not kept.dtype:
                trained = isinstance(kept, nn.Parameter)
                made: Any = nn.Parameter(moved, kept.requires_grad) if trained else moved
                torch.utils.swap_tensors(kept, made)
    return module


@contextmanager
def another_device() -> Iterator[Callable[[Tensor], Tensor]]:
    """The device, and what puts tensors there."""
    with patch.object(nn.Module, "to", _to), _Calls(), _Operations():
        yield lambda tensor: _Elsewhere(tensor.detach().clone())
