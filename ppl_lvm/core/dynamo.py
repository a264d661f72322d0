"""Calls of torch without the import of its compiler.

Optimizers and dispatch modes import `torch._dynamo`, which takes half a second or more, in order to
disable it in their functions (`torch._compile._disable_dynamo`).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_DISABLED = "__dynamo_disable"  # attribute of such a function: itself, with the compiler disabled


@contextmanager
def without_dynamo(*functions: Callable[..., Any]) -> Iterator[None]:
    """Call functions of torch as they are written, unless the compiler has been imported already.

    `functions` are those that torch has decorated.
    """
    written = [getattr(function, "__wrapped__", None) for function in functions]
    if "torch._dynamo" in sys.modules:
        written = []
    written = [each for each in written if each is not None and not hasattr(each, _DISABLED)]
    for each in written:
        setattr(each, _DISABLED, each)
    try:
        yield
    finally:
        for each in written:
            delattr(each, _DISABLED)
