"""Values checked against annotations, with errors that name both.

    check_value(0, Count, "fit: num_steps")    # "fit: num_steps=0 is too small. Pass a whole …"

An annotation declares the type and the range of an argument once, `Annotated[float, Gt(0)]` with
the markers of `annotated_types`; functions, constructors, and the command line read it there. NaN
is no number, and infinity is one only if a bound is infinite. True is no number. NumPy's scalars
and 0-d tensors become Python's numbers.
"""

import inspect
import math
import numbers
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from ppl_lvm.core.errors import ArgumentError
from ppl_lvm.core.messages import did_you_mean

Count = Annotated[int, Ge(1), Lt(2**63)]
Whole = Annotated[int, Ge(0), Lt(2**63)]
Seed = Annotated[int, Ge(0), Lt(2**32)]  # NumPy's limit
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Lt(1)]
UnitInterval = Annotated[float, Ge(0), Le(1)]
Seconds = Annotated[float, Ge(0), Le(math.inf)]
Number = float  # finite


@dataclass(frozen=True)
class Accepts:
    """Marker of an annotation that no type expresses: its words, and a test of the value."""

    words: str
    test: Callable[[Any], bool]


# A program, a module or a class of such, or its address; whatever else is called is a builder.
ProgramSource = Annotated[
    Any,
    Accepts("a program, a class, or an address as text", lambda v: _is_program(v) or _is_text(v)),
]
# A torch optimizer or schedule in call syntax, or a callable.
CallSyntax = Annotated[
    Any,
    Accepts(
        "a text such as 'Adam(lr=0.01)' or a callable",
        lambda v: _is_program(v) or _is_text(v) or hasattr(v, "state_dict"),
    ),
]
Objective = Annotated[
    Any,
    Accepts(
        "a pyro.infer.ELBO or a text such as 'IWAE(num_particles=5)'",
        lambda v: _is_text(v) or hasattr(v, "num_particles"),
    ),
]
DataSource = Annotated[
    Any,
    Accepts(
        "an array, a tensor, a tuple of them, a DataFrame, a torch Dataset or DataLoader, the name "
        "of a set, or a file's path",
        lambda v: _is_data(v),
    ),
]


class _MismatchError(Exception):
    """A value that an annotation does not accept; `in_range` tells if only its range is wrong."""

    def __init__(self, problem: str, depth: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.depth = problem, depth


def check_arguments(
    values: Mapping[str, Any], hints: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    """The values as annotated, with NumPy's scalars as Python's numbers.

    Raises:
        ArgumentError: for the first value that its annotation does not accept.
    """
    return {
        name: check_value(value, hints[name], f"{owner}: {name}") if name in hints else value
        for name, value in values.items()
    }


def check_value(value: Any, hint: Any, name: str) -> Any:
    """The value as annotated; an `ArgumentError` names it `name`."""
    try:
        return _fit(value, hint)
    except _MismatchError as error:
        raise ArgumentError(
            f"{name}={_shown(value)} {error.problem}. Pass {words_of(hint)}."
            f"{_closest_choice(value, hint)}"
        ) from None


def words_of(hint: Any) -> str:
    """Words for the values that an annotation accepts."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for marker in hint.__metadata__:
            if isinstance(marker, Accepts):
                return marker.words
        return _range_words(arguments[0], hint.__metadata__)
    if origin in (Union, types.UnionType):
        parts = list(dict.fromkeys(words_of(part) for part in arguments))
        return ", ".join(parts[:-1]) + f" or {parts[-1]}" if len(parts) > 1 else parts[0]
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is ...:
            return f"a tuple of which each is {words_of(arguments[0])}"
        return f"a tuple ({', '.join(words_of(part) for part in arguments)})"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of which each is {words_of(arguments[0])}"
    return _TYPE_WORDS.get(origin or hint) or _type_name(origin or hint)


_TYPE_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "a dictionary",
    Mapping: "a dictionary",
    Callable: "a function",
    types.NoneType: "None",
    None: "None",
    Path: "a path",
    tuple: "a tuple",
}


def _type_name(kind: Any) -> str:
    name = getattr(kind, "__name__", str(kind))
    name = {"ndarray": "NumPy array", "Tensor": "tensor", "list": "list"}.get(name, name)
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"


def _range_words(kind: Any, markers: Sequence[Any]) -> str:
    """A number with its range: "a whole number of at least 1"."""
    noun = "a whole number" if kind is int else "a number" if kind is float else words_of(kind)
    low = [f"of at least {m.ge:g}" for m in markers if isinstance(m, Ge)]
    low += [f"above {m.gt:g}" for m in markers if isinstance(m, Gt)]
    high = [f"at most {m.le:g}" for m in markers if isinstance(m, Le) and m.le != math.inf]
    high += [f"below {_limit(m.lt)}" for m in markers if isinstance(m, Lt) and m.lt != 2**63]
    return f"{noun} {' and '.join(low + high)}".rstrip()


def _limit(value: Any) -> str:
    return "2**32" if value == 2**32 else f"{value:g}"


def _closest_choice(value: Any, hint: Any) -> str:
    choices = [
        c
        for part in (hint, *get_args(hint))
        if get_origin(part) is Literal
        for c in get_args(part)
        if isinstance(c, str)
    ]
    return did_you_mean(value, choices) if isinstance(value, str) else ""


def _is_program(value: Any) -> bool:
    return callable(value) and not (inspect.isclass(value) and value.__module__ == "builtins")


def _is_data(value: Any) -> bool:
    if value is None or inspect.isclass(value) or isinstance(value, _NO_DATA):
        return False
    if isinstance(value, str | Path):
        return isinstance(value, Path) or _is_text(value)
    return any(hasattr(value, name) for name in _DATA_METHODS)


_NO_DATA = (bytes, AbstractSet, Iterator, Mapping, numbers.Number, numbers.Complex)
_DATA_METHODS = ("__len__", "__iter__", "__getitem__")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    """A short text of a value of any type."""
    if value is None or isinstance(value, bool | numbers.Number | str | bytes):
        text = repr(_plain_number(value))
    elif hasattr(value, "shape"):
        text = f"<{type(value).__name__} of shape {tuple(value.shape)}>"
    elif isinstance(value, Sequence | AbstractSet | Mapping) and len(value) <= 12:
        text = repr(value)
    else:
        text = f"<{getattr(value, '__name__', type(value).__name__)}>"
    return text if len(text) <= 60 else f"{text[:56]}…"


def _fit(value: Any, hint: Any) -> Any:
    """The value as an annotation accepts it, else a `_MismatchError`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fit_range(_fit_marked(value, hint), hint.__metadata__)
    if origin in (Union, types.UnionType):
        return _fit_union(value, arguments)
    if origin is Literal:
        if any(value is c or (type(value) is type(c) and value == c) for c in arguments):
            return value
        raise _MismatchError("is not among the choices" if isinstance(value, str) else _is_a(value))
    if origin in _FITS:
        return _FITS[origin](value, arguments)
    kind = origin or hint
    if kind in _FITS:
        return _FITS[kind](value, ())
    if not isinstance(kind, type) or kind in (object, Any) or getattr(kind, "_is_protocol", False):
        return value  # Any, type variables, protocols
    if not isinstance(value, kind):
        raise _MismatchError(_is_a(value))
    if getattr(value, "is_meta", False) and type(value).__module__.startswith("torch"):
        raise _MismatchError("is on the device 'meta', without values", depth=1)
    if str(getattr(value, "layout", "torch.strided")) != "torch.strided":
        raise _MismatchError("is not dense", depth=1)
    return value


def _fit_marked(value: Any, hint: Any) -> Any:
    for marker in hint.__metadata__:
        if isinstance(marker, Accepts) and not marker.test(value):
            empty = isinstance(value, str) and not value.strip()
            raise _MismatchError("is empty" if empty else _is_a(value))
    infinite = any(getattr(m, "le", getattr(m, "ge", 0)) in _INFINITE for m in hint.__metadata__)
    if infinite and isinstance(value, float) and math.isinf(value):
        return value
    return _fit(value, get_args(hint)[0])


_INFINITE = (math.inf, -math.inf)


def _fit_range(value: Any, markers: Sequence[Any]) -> Any:
    for m in markers:
        below = (isinstance(m, Ge) and value < m.ge) or (isinstance(m, Gt) and value <= m.gt)
        above = (isinstance(m, Le) and value > m.le) or (isinstance(m, Lt) and value >= m.lt)
        if below or above:
            raise _MismatchError(f"is too {'small' if below else 'large'}", depth=1)
    return value


def _fit_union(value: Any, parts: Sequence[Any]) -> Any:
    mismatches = []
    for part in parts:
        try:
            return _fit(value, part)
        except _MismatchError as error:
            mismatches.append(error)
    raise max(mismatches, key=lambda error: error.depth)


def _is_a(value: Any) -> str:
    if value is None:
        return "is not accepted"
    if inspect.isclass(value):
        return "is a class"
    return f"is {_type_name(type(value))}"


def _plain_number(value: Any) -> Any:
    """A Python number for NumPy's scalars and for 0-d tensors and arrays."""
    scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if scalar and not inspect.isclass(value) else value


def _fit_int(value: Any, _: Any) -> int:
    number = _plain_number(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise _MismatchError(_is_a(value))
    return _fit_range(number, (Ge(-(2**63)), Lt(2**63)))  # torch's integers


def _fit_float(value: Any, _: Any) -> float:
    number = _plain_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _MismatchError(_is_a(value))
    if abs(number) > sys.float_info.max or number != number:
        raise _MismatchError("is not a finite number", depth=1)
    return number


def _fit_bool(value: Any, _: Any) -> bool:
    flag = value.item() if type(value).__name__ == "bool" and hasattr(value, "item") else value
    if not isinstance(flag, bool):
        raise _MismatchError(_is_a(value))
    return flag


def _fit_none(value: Any, _: Any) -> None:
    if value is not None:
        raise _MismatchError(_is_a(value))


def _fit_text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _MismatchError(_is_a(value))
    return value


def _fit_path(value: Any, _: Any) -> Any:
    if not isinstance(value, os.PathLike):
        raise _MismatchError(_is_a(value))
    return value


def _fit_function(value: Any, _: Any) -> Any:
    if not _is_program(value):
        raise _MismatchError(_is_a(value))
    return value


def _fit_class(value: Any, parts: Sequence[Any]) -> Any:
    base = (get_origin(parts[0]) or parts[0]) if parts else object
    if not inspect.isclass(value) or (isinstance(base, type) and not issubclass(value, base)):
        raise _MismatchError(_is_a(value) + " of another kind" * inspect.isclass(value))
    return value


def _fit_tuple(value: Any, parts: Sequence[Any]) -> Any:
    """A tuple; a list is accepted for one, since JSON has no tuples."""
    if not isinstance(value, tuple | list):
        raise _MismatchError(_is_a(value))
    if not parts:
        return value
    if len(parts) == 2 and parts[1] is ...:
        parts = [parts[0]] * len(value)
    if len(parts) != len(value):
        raise _MismatchError(f"has {len(value)} entries", depth=1)
    return type(value)(_entries(value, parts)) if type(value) in (tuple, list) else value


def _entries(value: Any, parts: Sequence[Any]) -> list[Any]:
    fitted = []
    for k, (entry, part) in enumerate(zip(value, parts, strict=True)):
        try:
            fitted.append(_fit(entry, part))
        except _MismatchError as error:
            problem = f"has an entry {k}, {_shown(entry)}, that {error.problem}"
            raise _MismatchError(problem, depth=1) from None
    return fitted


def _fit_sequence(value: Any, parts: Sequence[Any]) -> Any:
    arrays = getattr(value, "ndim", 0) == 1  # NumPy, torch, pandas
    if isinstance(value, str | bytes | Mapping) or not (isinstance(value, Sequence) or arrays):
        raise _MismatchError(_is_a(value))
    if parts:
        fitted = _entries(value, [parts[0]] * len(value))
        return fitted if arrays else type(value)(fitted) if type(value) in (tuple, list) else value
    return value


def _fit_mapping(value: Any, parts: Sequence[Any]) -> Any:
    if not isinstance(value, Mapping):
        raise _MismatchError(_is_a(value))
    if len(parts) == 2:
        for key, entry in value.items():
            try:
                _fit(key, parts[0])
                _fit(entry, parts[1])
            except _MismatchError as error:
                problem = f"has an entry {_shown(key)} that {error.problem}"
                raise _MismatchError(problem, depth=1) from None
    return value


_FITS: dict[Any, Callable[[Any, Any], Any]] = {
    bool: _fit_bool,
    int: _fit_int,
    float: _fit_float,
    str: _fit_text,
    types.NoneType: _fit_none,
    Path: _fit_path,
    Callable: _fit_function,
    type: _fit_class,
    tuple: _fit_tuple,
    list: _fit_sequence,
    Sequence: _fit_sequence,
    dict: _fit_mapping,
    Mapping: _fit_mapping,
}
