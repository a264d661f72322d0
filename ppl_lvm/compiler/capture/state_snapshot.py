"""State outside torch's operations: random states, buffers, Python numbers.

A model that counts its steps (`self.t += 1`) or draws from NumPy does so in Python, and a captured
step runs no Python. Comparing this state before and after a step detects it.
"""

import inspect
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ppl_lvm.core.errors import CannotCaptureError
from ppl_lvm.core.rng import RngState

PLAIN_TYPES = (bool, int, float, str, type(None))
_MAX_ENTRIES = 100  # of a list or dictionary whose entries are compared one by one


class PythonStateSnapshot:
    """Snapshot of random states, buffers and counters, restored after a trial step.

    A counter is an integer or floating-point number among a program's attributes. Other attributes
    (a flag that something has been initialized) stay as the step left them, since the objects that
    they describe stay too.
    """

    def __init__(self, objects: Sequence[object]) -> None:
        self._random = RngState.capture()
        self._buffers = [(b, b.clone()) for m in modules(objects) for b in m.buffers(recurse=False)]
        owners = {id(item): item for item in [*objects, *modules(objects)]}
        self._counters = [
            (vars(owner), {k: v for k, v in vars(owner).items() if type(v) in (int, float)})
            for owner in owners.values()
            if hasattr(owner, "__dict__")
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        self._random.restore()
        for buffer, value in self._buffers:
            buffer.copy_(value)
        for attributes, counters in self._counters:
            attributes.update(counters)


def refuse_foreign_randomness(before: RngState) -> None:
    """Raise if Python's or NumPy's generator has moved since `before`."""
    if random.getstate() != before.python:
        raise CannotCaptureError("draws from Python's random; use torch's random functions")
    now: Any = np.random.get_state()
    then = before.numpy
    if now[2] != then[2] or not np.array_equal(now[1], then[1]):
        raise CannotCaptureError("draws from numpy.random; use torch's random functions")


def modules(objects: Iterable[object]) -> list[nn.Module]:
    """All modules in these objects, and in closures of functions and globals they name, once."""
    parts: list[Any] = []
    for item in _unwrapped(objects):
        parts += [item, getattr(item, "__self__", None)]
        parts += [value for _, value in _captured_names(item)] if inspect.isfunction(item) else []
    nested = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
    return list(dict.fromkeys(nested))


def forward_hooks(modules: Iterable[nn.Module]) -> list[Any]:
    """The forward hooks of these modules."""
    hooked = [m for m in modules if m._forward_hooks or m._forward_pre_hooks]
    return [
        h
        for m in hooked
        for hooks in (m._forward_pre_hooks, m._forward_hooks)
        for h in hooks.values()
    ]


def plain_attributes(objects: Sequence[object]) -> dict[str, Any]:
    """The plain numbers and strings that objects keep: attributes, closures, globals they name.

    Forward hooks of modules count as objects.

    A list or dictionary counts with its length and, where it is short, with its entries.
    """
    programs = [*objects, *forward_hooks(modules(objects))]
    owners = {id(item): item for item in [*_unwrapped(programs), *modules(objects)]}
    state: dict[str, Any] = {}
    for owner in owners.values():
        state.update(_plain(type(owner).__name__, getattr(owner, "__dict__", {})))
        if inspect.ismethod(owner):
            state.update(_plain(type(owner.__self__).__name__, vars(owner.__self__)))
        if inspect.isfunction(owner):
            state.update(_plain(owner.__name__, dict(_captured_names(owner))))
    return state


def _unwrapped(objects: Iterable[object]) -> Iterator[object]:
    """The objects, and the functions inside handlers, decorators and `functools.partial`."""
    for item in objects:
        inner: object | None = item
        while inner is not None:
            yield inner
            inner = getattr(inner, "__wrapped__", None) or getattr(inner, "func", None)


def _plain(name: str, values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, PLAIN_TYPES):
            plain[f"{name}.{key}"] = value
        elif isinstance(value, (list, dict)) and not key.startswith("_"):
            plain[f"len({name}.{key})"] = len(value)
            if len(value) <= _MAX_ENTRIES:
                entries = value.items() if isinstance(value, dict) else enumerate(value)
                plain |= {
                    f"{name}.{key}[{k!r}]": v for k, v in entries if isinstance(v, PLAIN_TYPES)
                }
    return plain


def _captured_names(function: Any) -> Iterator[tuple[str, Any]]:
    """The variables of a function's closure and the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def reject_attribute_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise if a step has changed a plain attribute."""
    for name, value in after.items():
        if name not in before or before[name] != value:
            raise CannotCaptureError(
                f"a step changes {name} (from {before.get(name)!r} to {value!r}); a captured step "
                "would not: keep it in a tensor that is changed in place"
            )
