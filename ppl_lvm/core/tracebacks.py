"""Tracebacks of errors that leave the package, without its frames.

    @trims_traceback
    def fit(...): ...

A message of this package names the fault and its remedy, so its own frames and those of torch and
Pyro would only hide it. The user's frames stay: the call, and the line of a program that failed.
The complete traceback goes to the logger "ppl_lvm" at level DEBUG.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

from ppl_lvm.core.frames import TOOLKIT, in_package, is_users, module_name

P = ParamSpec("P")
R = TypeVar("R")

# Errors whose message is written for the user, as the command line prints them in one line.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, ArithmeticError)

# Packages that run between a call and the user's program, or below it.
DEPENDENCIES = (
    "arviz",
    "click",
    "matplotlib",
    "opt_einsum",
    "pandas",
    "pyarrow",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "typer",
    "xarray",
)

logger = logging.getLogger("ppl_lvm")


def trims_traceback(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: errors of the user leave the function without frames of the package."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            trim_traceback(error)
            raise  # without an argument: it adds no frame

    return call


def trim_traceback(error: BaseException) -> None:
    """Remove the frames of the package and of libraries from an error's traceback.

    An unexpected error that no line of the user raised keeps its traceback: it is a fault of the
    package. Causes stay where they lead to a line of the user.
    """
    chain = list(_chain(error))
    frames = [_users_frames(each.__traceback__) for each in chain]
    if not isinstance(error, USER_ERRORS) and not any(frames):
        return
    logger.debug("Traceback of the error that follows", exc_info=error)
    links = [(error, frames[0])]
    links += [(e, trace) for e, trace in zip(chain[1:], frames[1:], strict=True) if trace]
    for (link, trace), (cause, _) in zip(links, [*links[1:], (None, None)], strict=True):
        link.__traceback__, link.__cause__ = trace, cause


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that a traceback shows as its causes."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def is_users_program(frame: FrameType) -> bool:
    """True if a frame runs code of neither this package nor one below it."""
    return is_users(frame) and not in_package(module_name(frame), TOOLKIT, *DEPENDENCIES)


def _users_frames(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback in code of the user."""
    steps = []
    while trace is not None:
        if is_users_program(trace.tb_frame):
            steps.append(trace)
        trace = trace.tb_next
    users: TracebackType | None = None
    for step in reversed(steps):
        users = TracebackType(users, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return users
