"""Source lines of the user's program, for error messages."""

from types import FrameType

from ppl_lvm.core.frames import in_package, is_library, line_of, module_name, traceback_frames

_COMPILER = "ppl_lvm.compiler"


def _is_compiler(frame: FrameType) -> bool:
    return in_package(module_name(frame), _COMPILER)


def user_line(frame: FrameType | None) -> str | None:
    """The innermost `file:line` outside libraries and the compiler; None if no frame is.

    The search ends at the first frame of the compiler: its caller is not the cause. It passes over
    frames of modules that observe operations (`RUNS_INSIDE_PROGRAMS`), which lie inside the user's.
    """
    while frame is not None:
        if _is_compiler(frame) and not frame.f_globals.get("RUNS_INSIDE_PROGRAMS"):
            return None
        if not is_library(frame) and not _is_compiler(frame):
            return "{}:{}".format(*line_of(frame))
        frame = frame.f_back
    return None


def error_line(error: BaseException) -> str | None:
    """The innermost `file:line` of an exception's traceback outside libraries and the compiler."""
    lines = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback_frames(error)
        if not is_library(frame) and not _is_compiler(frame)
    ]
    return lines[-1] if lines else None
