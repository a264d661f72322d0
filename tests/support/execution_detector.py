"""A detector of what loading a directory executes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EXECUTES = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn")
EXECUTES += ("os.spawn", "pty.spawn", "socket.connect", "socket.bind", "webbrowser.open")
EXECUTES += ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod")
EXECUTES += (
    "shutil.copyfile",
    "shutil.rmtree",
    "sqlite3.connect",
    "code.__new__",
    "urllib.Request",
)


@dataclass
class Detector:
    """Events of the interpreter by which a directory executes something, while it is on."""

    folder: Path
    on: bool = False
    events: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in EXECUTES:
            self.events.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            if arguments[0] != os.devnull:
                self.events.append(f"open {arguments[:2]} to write")
        elif event == "exec":
            name = str(getattr(arguments[0], "co_filename", ""))
            if name.startswith(str(self.folder)):
                self.events.append(f"exec {name}")

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        """The events of this block."""
        self.events, self.on = [], True
        try:
            yield self.events
        finally:
            self.on = False


def detector(folder: Path) -> Detector:
    """A new detector; `folder` holds the attacker's files. Hooks stay until the process ends."""
    new = Detector(folder)
    sys.addaudithook(new)
    return new
