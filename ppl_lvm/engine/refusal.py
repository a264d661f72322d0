"""Why a program cannot be captured, and the line in the user's file that makes it so."""

import functools
import sysconfig
import traceback
from pathlib import Path
from types import FrameType, TracebackType

import numpy
import pyro
import torch

_ENGINE = str(Path(__file__).resolve().parent)
_TOOLKIT = str(Path(__file__).resolve().parents[1])
_STDLIB = sysconfig.get_paths()["stdlib"]
_LIBRARIES = tuple(
    str(Path(str(module.__file__)).resolve().parent) for module in (torch, pyro, numpy)
)
_WATCHERS = ("tape.py", "watching.py")  # frames of ours that stand inside the user's


class CannotCaptureError(ValueError):
    """A program was asked to run captured or compiled and cannot be."""

    def __init__(self, reason: str, where: str | None = None) -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where


@functools.lru_cache(maxsize=4096)
def _is_library(filename: str) -> bool:
    path = str(Path(filename).resolve())
    if filename.startswith("<") or path.startswith((_ENGINE, *_LIBRARIES)):
        return True
    return path.startswith(_STDLIB) and "-packages" not in path


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs code of neither a library nor this toolkit."""
    filename = frame.f_code.co_filename
    return not _is_library(filename) and not filename.startswith(_TOOLKIT)


def user_line(frame: FrameType | None) -> str | None:
    """The innermost `file:line` outside torch, Pyro and this folder; None in a backward pass.

    The walk ends at the first frame of the engine: what called the engine is not to blame.
    """
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(_ENGINE) and not filename.endswith(_WATCHERS):
            return None
        if not _is_library(filename):
            return f"{filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def error_line(error: BaseException) -> str | None:
    """The innermost `file:line` of the user's own code in an exception's traceback."""
    tb: TracebackType | None = error.__traceback__
    lines = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(tb)
        if not _is_library(frame.filename)
    ]
    return lines[-1] if lines else None
