"""Keep freed memory in the process (glibc `mallopt`).

A step allocates and frees the same tables as the step before. The C library of Linux returns freed
memory of more than some hundred kilobytes to the system, which hands it out again page by page,
cleared. For tables of megabytes that can cost more than their arithmetic. So once steps are
recorded, the library keeps up to half a gigabyte of freed memory, and asks the system directly only
for blocks beyond 32 megabytes.
"""

import ctypes
import functools
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3), glibc
_MAX_FREE, _LARGE = 2**29, 2**25  # bytes
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Configure the allocator, once per process; return whether it was configured.

    An allocator that the environment configures, or that is not glibc's, is left alone.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(
        library.mallopt(_MMAP_THRESHOLD, _LARGE) and library.mallopt(_TRIM_THRESHOLD, _MAX_FREE)
    )
