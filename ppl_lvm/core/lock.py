"""One process at a time writes to a directory.

The lock is the operating system's (POSIX record lock), which ends with the process, however it
ends. The file names the process that holds it.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ppl_lvm.core.storage import write_error

LOCK = ".lock"

# Record locks do not exclude threads of one process. A forked process holds none.
_held: set[tuple[int, str]] = set()


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it does not exist.

    Raises:
        ValueError: another fit holds it; names the process.
        WriteError: the directory cannot be written.
    """
    path = directory / LOCK
    key = (os.getpid(), str(path.resolve()))
    if key in _held:
        raise ValueError(_busy(directory, f"this process ({os.getpid()})"))
    descriptor = _acquire(directory, path)
    _held.add(key)
    with suppress(OSError):  # a full disk: the lock holds, without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _holder().encode(), 0)
    try:
        yield
    finally:
        _held.discard(key)
        with suppress(OSError):  # the directory has been deleted, or is read-only by now
            path.unlink()
        os.close(descriptor)


def _acquire(directory: Path, path: Path) -> int:
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(path.parent, error) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(_busy(directory, holder or "another process")) from None
        except OSError:
            return descriptor  # a file system without locks
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder has ended and removed it in between


def _holder() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {started}"


def _busy(directory: Path, holder: str) -> str:
    return (
        f"{directory} is in use: {holder} fits there. Wait until it has ended, end it, or choose "
        "another directory."
    )
