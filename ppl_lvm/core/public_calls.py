"""Lock of public calls, and restoration of the process-global state.

    @public_call
    def fit(...): ...

Torch's default generators and dtype, Pyro's handlers, parameter store and validation flags, the
filters of warnings and the levels of loggers belong to the process, not to a thread. A public call
holds one lock for its whole duration, so that its numbers are those of the call alone; a call of
another thread waits. Afterwards this state is as before, also where the call raises. Calls inside a
call (a guide that reads a signature) pass the lock.

Plain Pyro programs that another thread runs at the same time do not know the lock.
"""

import functools
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar, overload

import pyro
import torch
from pyro.poutine import handlers
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from torch import Tensor

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.distributions import invalid_values
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.tracebacks import trims_traceback

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("ppl_lvm")

# Handlers that change what a program means: around a call they would be ignored without a word.
_CHANGES_PROGRAMS = (
    handlers.ConditionMessenger,
    handlers.DoMessenger,
    handlers.EqualizeMessenger,
    handlers.LiftMessenger,
    handlers.MaskMessenger,
    handlers.ReparamMessenger,
    handlers.ScaleMessenger,
    handlers.SubstituteMessenger,
    handlers.UnconditionMessenger,
)

_lock = threading.RLock()
_depth = 0
_owner = 0  # thread inside the outermost call


@overload
def public_call(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def public_call(
    *, runs_programs: bool = True, checks_arguments: bool = True
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def public_call(
    function: Any = None, /, *, runs_programs: bool = True, checks_arguments: bool = True
) -> Any:
    """Decorator: the function is exclusive, leaves no trace, and raises without our frames.

    Args:
        runs_programs: the function runs the caller's programs, without handlers around the call.
        checks_arguments: its arguments are checked first, as by `checked`.
    """
    if function is None:
        settings = {"runs_programs": runs_programs, "checks_arguments": checks_arguments}
        return functools.partial(public_call, **settings)

    @(checked if checks_arguments else trims_traceback)
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with exclusive(function.__name__):
            if runs_programs and _depth == 0:
                refuse_handlers(function.__name__)
            with isolated():
                try:
                    return function(*args, **kwargs)
                except ValueError as error:
                    if (sentence := invalid_values(error)) is not None:
                        raise ValueError(sentence) from None
                    if len(error.args) == 1:  # without Pyro's table of the sites so far
                        error.args = (re.split(r"\n *Trace Shapes:", str(error))[0],)
                    raise

    return call


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock of all public calls.

    Args:
        name: of the call, for the log line of a call that has to wait.
    """
    lock = _lock  # a forked process gets another one
    if not lock.acquire(blocking=False):
        logger.info("%s waits for a call of another thread: one runs at a time.", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def isolated() -> Iterator[None]:
    """Run without the handlers around the call, and restore the state of the process on leaving.

    Call it inside `exclusive`.
    """
    global _depth, _owner
    outermost = ProcessState() if _depth == 0 else None
    gradients: AbstractContextManager[Any]
    gradients = torch.enable_grad() if _depth else nullcontext()  # the outer call may need none
    pyro_state = PyroState()
    _depth += 1
    _owner = threading.get_ident()
    try:
        with preserve_rng(), gradients:
            yield
    finally:
        _depth -= 1
        pyro_state.restore()
        if outermost is not None:
            outermost.restore()


def refuse_handlers(name: str) -> None:
    """Raise where handlers around a call change programs that the call runs without them.

    Raises:
        ValueError: names the handler and the remedy.
    """
    for handler in _PYRO_STACK:
        if isinstance(handler, _CHANGES_PROGRAMS):
            short = type(handler).__name__.removesuffix("Messenger").lower()
            raise ValueError(
                f"{name}: called inside the Pyro handler {short!r}, which changes programs, and a "
                f"call runs them without the handlers around it. Wrap the program: "
                f"{name}(poutine.{short}(model, ...), ...), and call it outside."
            )


class PyroState:
    """Pyro's handlers, plates and parameters; its handlers are put away until `restore`."""

    def __init__(self) -> None:
        self._handlers, self._dims = _PYRO_STACK[:], _DIM_ALLOCATOR._stack
        self._enumeration = dict(vars(_ENUM_ALLOCATOR))
        self._store = {name: dict(part) for name, part in vars(pyro.get_param_store()).items()}
        # Pyro's scopes remove from parameters the attribute by which SVI finds its leaves.
        self._leaves: list[tuple[Tensor, Any]] = [
            (p, vars(p)["unconstrained"])
            for p in self._store["_params"].values()
            if "unconstrained" in vars(p)
        ]
        _PYRO_STACK.clear()
        _DIM_ALLOCATOR._stack = []

    def restore(self) -> None:
        """Put everything back."""
        _PYRO_STACK[:], _DIM_ALLOCATOR._stack = self._handlers, self._dims
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(self._enumeration)
        vars(pyro.get_param_store()).update(self._store)
        for parameter, leaf in self._leaves:
            vars(parameter)["unconstrained"] = leaf


class ProcessState:
    """Settings of the process that a call may change: its own code, or a library on import."""

    def __init__(self) -> None:
        self._dtype, self._threads = torch.get_default_dtype(), torch.get_num_threads()
        self._pyro = pyro.settings.get()
        self._filters, self._show = warnings.filters[:], warnings.showwarning
        self._path, self._environment = sys.path[:], dict(os.environ)
        self._loggers = [(log, _settings(log)) for log in _loggers()]

    def restore(self) -> None:
        """Put everything back that differs."""
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        changed = {k: v for k, v in self._pyro.items() if pyro.settings.get(k) != v}
        pyro.settings.set(**changed)
        if warnings.filters != self._filters:
            warnings.filters[:] = self._filters  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        warnings.showwarning = self._show
        if sys.path != self._path:
            sys.path[:] = self._path
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        for log, settings in self._loggers:
            if _settings(log) != settings:
                log.handlers[:], log.level, log.propagate, log.disabled = settings
                logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]


def _loggers() -> list[logging.Logger]:
    named = list(logging.Logger.manager.loggerDict.values())
    return [logging.root, *(log for log in named if isinstance(log, logging.Logger))]


def _settings(log: logging.Logger) -> tuple[list[logging.Handler], int, bool, bool]:
    return log.handlers[:], log.level, log.propagate, log.disabled


def _renew_lock() -> None:
    """In a forked process: the call of another thread does not go on there."""
    global _lock, _depth
    _lock = threading.RLock()
    if _depth and _owner != threading.get_ident():
        _depth = 0
        _PYRO_STACK.clear()
        _DIM_ALLOCATOR._stack = []


os.register_at_fork(after_in_child=_renew_lock)
