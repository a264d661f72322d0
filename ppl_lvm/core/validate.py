"""Range checks of arguments, with messages that name the argument."""

from collections.abc import Sequence
from typing import Any


def positive_int(name: str, value: Any) -> int:
    """`value` if it is a whole number of at least 1, else a `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return value


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value` if it is among the choices, else a `ValueError`."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")
    return value
