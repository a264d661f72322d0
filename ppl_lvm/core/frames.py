"""Owner of a stack frame: the user's program, toolkit, library.

Frames are told apart by the name of the module that their code belongs to, one dotted component at
a time, so `pyroved` is not Pyro and `torchtools` is not torch. A module named like one of the
standard library counts as that one only if its file lies there.
"""

import functools
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

LIBRARIES = ("numpy", "pyro", "torch")
TOOLKIT = "ppl_lvm"
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()
# Programs that come with the toolkit are treated as the user's are.
PROGRAMS = ("ppl_lvm.guides", "ppl_lvm.models")


def in_package(module: str, *packages: str) -> bool:
    """True if `module` is one of the packages or lies inside one.

    >>> in_package("torch.nn.functional", "torch"), in_package("torchtools", "torch")
    (True, False)
    """
    return _is_inside(module, packages)


@functools.lru_cache(maxsize=4096)
def _is_inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def module_name(frame: FrameType) -> str:
    """Name of the module that a frame's code belongs to, "" for generated code without one."""
    return str(frame.f_globals.get("__name__") or "")


def is_library(frame: FrameType) -> bool:
    """True if a frame runs NumPy, Pyro, torch, the standard library, or generated code."""
    module = module_name(frame)
    if frame.f_code.co_filename.startswith("<") and module != "__main__":
        return True
    return in_package(module, *LIBRARIES) or _is_standard(module, frame.f_code.co_filename)


@functools.lru_cache(maxsize=4096)
def _is_standard(module: str, filename: str) -> bool:
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return False
    return Path(filename).resolve().is_relative_to(_STANDARD_LIBRARY)


def is_users(frame: FrameType) -> bool:
    """True if a frame runs a program: code of neither a library nor this toolkit."""
    return not is_library(frame) and is_program_module(module_name(frame))


def is_program_module(module: str) -> bool:
    """True for modules outside the toolkit, and for its models and guides."""
    return in_package(module, *PROGRAMS) or not in_package(module, TOOLKIT)


def line_of(frame: FrameType) -> tuple[str, int]:
    """File and line that a frame is at."""
    return frame.f_code.co_filename, frame.f_lineno


def traceback_frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames and line numbers that an exception passed through, outermost first."""
    return traceback.walk_tb(error.__traceback__)
