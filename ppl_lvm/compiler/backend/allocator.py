"""Memory that one step has freed stays with the process, for the next step to use again.

A step makes and drops the same tables as the step before. The C library of Linux gives freed
memory of more than some hundred kilobytes back to the system, which hands it out again page by
page, cleared: for tables of megabytes that can cost more than the arithmetic in them. So once
steps are recorded, the library is asked to keep up to half a gigabyte of what has been freed, and
to go to the system itself only for blocks beyond 32 megabytes.
"""

import ctypes
import functools
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3), glibc
_KEPT, _LARGE = 2**29, 2**25  # bytes
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Ask for it, once a process; whether it was granted.

    Left alone where the environment says how memory is to be handed out, and where the C library
    is not glibc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(
        library.mallopt(_MMAP_THRESHOLD, _LARGE) and library.mallopt(_TRIM_THRESHOLD, _KEPT)
    )
