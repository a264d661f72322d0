"""Range checks of arguments, with messages that name the argument."""

import math
from collections.abc import Sequence
from typing import Any


def positive_int(name: str, value: Any) -> int:
    """`value` if it is a whole number of at least 1.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return value


def positive_float(name: str, value: Any) -> float:
    """`value` as a float if it is a finite number above 0.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a number above 0, got {value!r}.")
    return float(value)


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value` if it is among the choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")
    return value
