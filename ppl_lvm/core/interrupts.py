"""SIGTERM and Ctrl-C during training.

The step is finished and a checkpoint written before the process ends.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ppl_lvm.core import distributed

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit statuses

_command: list[str] | None = None  # that started this process; None in Python


@contextmanager
def command(words: list[str]) -> Iterator[None]:
    """The scope of a command line: SIGTERM raises `SystemExit`, and hints name the command."""
    global _command
    main = threading.current_thread() is threading.main_thread()
    handled = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def end(number: int, _: Any) -> None:
        raise SystemExit(STATUS[signal.Signals(number)])

    if handled:
        signal.signal(signal.SIGTERM, end)
    _command, before = words, _command
    try:
        yield
    finally:
        _command = before
        if handled:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def announced(directory: Path) -> Iterator[None]:
    """Print one line where a signal ends this scope: how the run in `directory` continues."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ending:
        ended = isinstance(ending, KeyboardInterrupt) or ending.code in STATUS.values()
        if ended and distributed.rank() == 0:
            done = " ".join(getattr(ending, "__notes__", ()))
            print(f"Interrupted{done}. {resume_hint(directory)}", file=sys.stderr)
        raise


def in_python() -> bool:
    """True unless a command line started this process."""
    return _command is None


def resume_hint(directory: Path) -> str:
    """The command or the call that continues the run in `directory`."""
    if _command is None:
        return f"Continue with the same call and directory={str(directory)!r}, resume=True."
    words = list(_command)
    if not any(word.partition("=")[0] == "--directory" for word in words):
        words += ["--directory", str(directory)]
    if "--resume" not in words:
        words.append("--resume")
    launcher = "ppl-lvm"
    if distributed.world_size() > 1:
        launcher = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']} -m ppl_lvm"
    return f"Continue with: {launcher} {shlex.join(words)}"


class Requests:
    """Signals that have asked this process to end."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def receive(self, number: int, _: Any) -> None:
        """Remember a signal; end at once at the second Ctrl-C."""
        if number == signal.SIGINT and signal.SIGINT in self._numbers:
            raise KeyboardInterrupt
        self._numbers.append(number)

    def install(self) -> None:
        """Handle the signals that this process does not ignore."""
        for number in STATUS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self.receive)

    def restore(self) -> None:
        """Restore the handlers before `install`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def end(self, done: str) -> NoReturn:
        """End as the signals would have ended this process, after `done`.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after SIGTERM, with status 143.
        """
        self.restore()
        number = self._numbers[0]
        try:
            if callable(self._previous.get(number)):  # also Python's, of KeyboardInterrupt
                signal.raise_signal(number)
            raise SystemExit(STATUS[signal.Signals(number)])
        except (KeyboardInterrupt, SystemExit) as ending:
            ending.add_note(f" after {done}")
            raise


@contextmanager
def deferred(active: bool = True) -> Iterator[Requests]:
    """Defer SIGTERM and Ctrl-C: they are true in the value that this scope yields.

    Handlers belong to the main thread. In another one, and where nothing could be saved, signals
    act at once.
    """
    requests = Requests()
    main = threading.current_thread() is threading.main_thread()
    if not (active and main):
        yield requests
        return
    requests.install()
    try:
        yield requests
    finally:
        requests.restore()
