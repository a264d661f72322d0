"""Owner of a stack frame: the user's program, toolkit, library.

Frames are told apart by the name of the module that their code belongs to, one dotted component at
a time. File names and path prefixes play no part, so `pyroved` is not Pyro and `torchtools` is not
torch.
"""

import sys
import traceback
from collections.abc import Iterator
from types import FrameType

LIBRARIES = ("numpy", "pyro", "torch")
TOOLKIT = "ppl_lvm"
# Programs that come with the toolkit are treated as the user's are.
PROGRAMS = ("ppl_lvm.guides", "ppl_lvm.models")


def in_package(module: str, *packages: str) -> bool:
    """True if `module` is one of the packages or lies inside one.

    >>> in_package("torch.nn.functional", "torch"), in_package("torchtools", "torch")
    (True, False)
    """
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def module_name(frame: FrameType) -> str:
    """Name of the module that a frame's code belongs to, "" for generated code without one."""
    return str(frame.f_globals.get("__name__") or "")


def is_library(frame: FrameType) -> bool:
    """True if a frame runs NumPy, Pyro, torch, the standard library, or generated code."""
    module = module_name(frame)
    if frame.f_code.co_filename.startswith("<") and module != "__main__":
        return True
    return in_package(module, *LIBRARIES) or module.partition(".")[0] in sys.stdlib_module_names


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
