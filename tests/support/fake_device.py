"""Fake device: CPU tensors that refuse to meet other tensors.

    with fake_device() as to_device:
        fit(VAE, None, to_device(x))    # every tensor on the device of its data

Tensors report the device "meta" and are computed on the CPU, so that a program runs to its end
with results equal bit for bit to those on the CPU. `MisplacedError` is raised by operations that a
GPU would refuse:

    tensors of both devices in one operation (except scalars, unless they are joined),
    a CPU table indexed by a tensor on the device,
    NumPy arrays of a tensor on the device,
    draws on the device from a CPU generator.
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

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_JOINS = (_aten.cat.default, _aten.stack.default)
_CPU_INDEX = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class MisplacedError(RuntimeError):
    """Tensors of two devices in one operation."""


class _FakeTensor(Tensor):
    """Tensor on the fake device; `real_` holds its values on the CPU."""

    real_: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "_FakeTensor":
        wrapper: Any = Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        wrapper.real_ = real
        return wrapper

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = _FakeTensor(self.real_.detach().clone())
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
    return value.real_ if isinstance(value, _FakeTensor) else value


def _wrap(value: Any) -> Any:
    is_plain = isinstance(value, Tensor) and not isinstance(value, _FakeTensor)
    return _FakeTensor(value) if is_plain else value


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat = pytree.tree_leaves((args, kwargs))
    fakes = [a for a in flat if isinstance(a, _FakeTensor)]
    plain = [a for a in flat if isinstance(a, Tensor) and not isinstance(a, _FakeTensor)]
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    on_device = bool(fakes) if device is None else torch.device(device) == DEVICE
    if func is _aten.copy_.default:
        on_device = isinstance(args[0], _FakeTensor)
    elif func is not _aten._to_copy.default:
        _refuse(func, args, flat, fakes, plain, on_device)
    out = func(*pytree.tree_map(_real, args), **pytree.tree_map(_real, kwargs))
    if func._schema.is_mutable and isinstance(out, Tensor):
        return next((a for a in (*fakes, *plain) if _real(a) is out), out)
    return pytree.tree_map(_wrap, out) if on_device else out


def _refuse(
    func: Any,
    args: tuple[Any, ...],
    flat: list[Any],
    fakes: list[_FakeTensor],
    plain: list[Tensor],
    on_device: bool,
) -> None:
    by_cpu_index = func in _CPU_INDEX and isinstance(args[0], _FakeTensor)
    if fakes and any(t.dim() > 0 or func in _JOINS for t in plain) and not by_cpu_index:
        raise MisplacedError(f"{func} of {[tuple(t.shape) for t in plain]} on the CPU and others")
    if fakes and func._schema.is_mutable and any(args[0] is tensor for tensor in plain):
        raise MisplacedError(f"{func} writes a tensor of the device to the CPU")
    if on_device and any(isinstance(a, torch.Generator) for a in flat):
        raise MisplacedError(f"{func} draws on the device from a CPU generator")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Functions of torch that do not reach the dispatcher."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if not isinstance(first, _FakeTensor):
            device = kwargs.get("device")
            if func not in (torch.tensor, torch.as_tensor) or device is None:
                return func(*args, **kwargs)
            result = func(*args, **{**kwargs, "device": "cpu"})
            return _wrap(result) if torch.device(device) == DEVICE else result
        if func is Tensor.new_tensor:
            return _wrap(torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs}))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            if not isinstance(args[1], _FakeTensor):
                raise MisplacedError("a parameter on the device is set to a tensor on the CPU")
            first.real_ = args[1].real_
            return None
        if func is Tensor.tolist:
            return first.real_.tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise MisplacedError("a NumPy array of a tensor on the device")
        return func(*args, **kwargs)


def _to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`, which keeps the parameter objects, as on a GPU."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None or is_lazy(tensor):
                continue
            real = _real(tensor).detach()
            if dtype is not None and real.is_floating_point() and real.dtype is not dtype:
                real = real.to(dtype)
            moved = (
                _FakeTensor(real) if device == DEVICE or isinstance(tensor, _FakeTensor) else real
            )
            if type(moved) is not type(tensor.detach()) or moved.dtype is not tensor.dtype:
                is_parameter = isinstance(tensor, nn.Parameter)
                new: Any = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
                torch.utils.swap_tensors(tensor, new)
    return module


@contextmanager
def fake_device() -> Iterator[Callable[[Tensor], Tensor]]:
    """Context with a fake device; yields the function that copies a tensor to it."""
    with patch.object(nn.Module, "to", _to), _Calls(), _Operations():
        yield lambda tensor: _FakeTensor(tensor.detach().clone())
