"""Arguments of public functions, checked against their annotations.

    @checked
    def sample(n: Count, seed: Seed | None = None): ...

The decorator refuses, by name and before the function runs, a value that the annotation does not
accept (see `ppl_lvm.core.validate`), and an argument that the function does not take. It removes
the package's frames from the errors that leave the function.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, get_type_hints

from ppl_lvm.core.errors import ArgumentError
from ppl_lvm.core.messages import did_you_mean
from ppl_lvm.core.tracebacks import trims_traceback
from ppl_lvm.core.validate import check_value

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function receives arguments as annotated; its errors show no inner frames."""
    check = _Checker(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        args, kwargs = check(args, kwargs)  # type: ignore[assignment]
        return function(*args, **kwargs)

    return trims_traceback(call)


def check_constructors(names: Iterable[str], namespace: Mapping[str, Any]) -> None:
    """Check the arguments of the constructors of these classes of a package."""
    for name in names:
        bases = inspect.getmro(namespace[name]) if inspect.isclass(namespace[name]) else ()
        owner = next((base for base in bases if "__init__" in vars(base)), object)
        constructor = vars(owner)["__init__"]
        if owner.__module__.startswith("ppl_lvm.") and not hasattr(constructor, "__wrapped__"):
            type.__setattr__(owner, "__init__", checked(constructor))


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> annotation with its markers; unreadable annotations are left out."""
    target: Any = function.__init__ if inspect.isclass(function) else function
    target = inspect.unwrap(target)
    try:
        hints = get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {}
        space = vars(sys.modules.get(getattr(target, "__module__", ""), types))
        for name, hint in getattr(target, "__annotations__", {}).items():
            holder = types.SimpleNamespace(__annotations__={name: hint})
            try:
                hints |= get_type_hints(holder, dict(space), include_extras=True)
            except (NameError, TypeError, AttributeError):
                continue
    hints.pop("return", None)
    return hints


class _Checker:
    """Arguments of a function as annotated; annotations are read at the first call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.signature = inspect.signature(function)

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        return hints_of(self.function)

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        owner = self.function.__name__
        if owner == "__init__" and args:
            owner = type(args[0]).__name__
        bound = bind(self.signature, args, kwargs, owner)
        for name, value in bound.arguments.items():
            if (hint := self.hints.get(name)) is None:
                continue
            kind = self.signature.parameters[name].kind
            label = f"{owner}: {name}"
            if kind is inspect.Parameter.VAR_POSITIONAL:
                each = (check_value(v, hint, f"{label}[{k}]") for k, v in enumerate(value))
                bound.arguments[name] = tuple(each)
            elif kind is not inspect.Parameter.VAR_KEYWORD and value is not self.default(name):
                bound.arguments[name] = check_value(value, hint, label)
        return bound.args, bound.kwargs

    def default(self, name: str) -> Any:
        return self.signature.parameters[name].default


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], owner: str
) -> inspect.BoundArguments:
    """The arguments by name.

    Raises:
        ArgumentError: an argument is unknown, missing, or given twice.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [n for n in signature.parameters if n != "self"]
        for name in kwargs:
            if name not in signature.parameters:
                hint = did_you_mean(name, names) or f" It takes {', '.join(names) or 'none'}."
                raise ArgumentError(f"{owner}: unknown argument {name!r}.{hint}") from None
        raise ArgumentError(f"{owner}: {error}. It takes {', '.join(names) or 'none'}.") from None
