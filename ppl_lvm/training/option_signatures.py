"""Signatures and docstrings of the fits from their options.

This module does not import torch, so that the command line starts fast.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from textwrap import fill
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_type_hints, overload

from ppl_lvm.core.arguments import bind, hints_of
from ppl_lvm.core.messages import warnings_once
from ppl_lvm.core.tracebacks import trims_traceback
from ppl_lvm.core.validate import check_arguments
from ppl_lvm.training.options import declared

P = ParamSpec("P")
O_co = TypeVar("O_co", covariant=True)
R = TypeVar("R")


class _Decorator(Protocol[O_co, P]):
    """Turns f(programs and data, options) into f(programs and data, name=value, …)."""

    @overload
    def __call__(
        self, function: Callable[[Any, Any, O_co], R], /
    ) -> Callable[Concatenate[Any, Any, P], R]: ...

    @overload
    def __call__(
        self, function: Callable[[Any, Any, Any, O_co], R], /
    ) -> Callable[Concatenate[Any, Any, Any, P], R]: ...


def takes_options(options: Callable[P, O_co]) -> _Decorator[O_co, P]:
    """Decorator: the last argument, options, is given by keywords, one for each field.

    The function receives signature and docstring from the fields, and the attribute `options`.
    """

    make_options: Callable[..., Any] = options

    def decorate(function: Callable[..., Any]) -> Any:
        kind = inspect.Parameter.KEYWORD_ONLY
        *arguments, _ = inspect.signature(function).parameters.values()
        keywords = [
            inspect.Parameter(f.name, kind, default=f.default, annotation=f.type)
            for f in declared(options)  # type: ignore[arg-type]
        ]
        signature = inspect.signature(function).replace(parameters=[*arguments, *keywords])

        @functools.cache
        def hints() -> dict[str, Any]:
            declarations = get_type_hints(options, include_extras=True)
            return hints_of(function) | declarations

        @trims_traceback
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            values = bind(signature, args, kwargs, function.__name__).arguments
            values = check_arguments(values, hints(), function.__name__)
            first = [values.pop(argument.name) for argument in arguments]
            from ppl_lvm.core.public_calls import public_call  # imports torch

            exclusive = public_call(checks_arguments=False)(function)
            with warnings_once():
                return exclusive(*first, make_options(**values))

        described: Any = call
        described.__signature__, described.options = signature, options
        described.__doc__ = f"{inspect.getdoc(function)}\n\nOptions:\n{_described(options)}\n"
        return described

    return decorate


def _described(options: Any) -> str:
    """Names and help texts of the fields, as in a docstring."""
    lines: Iterator[str] = (f"{f.name}: {f.metadata['help']}" for f in declared(options))
    return "\n".join(
        fill(line, 96, initial_indent="    ", subsequent_indent="        ") for line in lines
    )
