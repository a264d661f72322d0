"""Changes of a run directory by an attacker."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ESCAPE = "\x1b]0;owned\x07<script>alert(1)</script>\u202e"


@dataclass(frozen=True)
class Attack:
    """A change of a run directory.

    Attributes:
        name: for messages.
        change: edits the directory; its second argument is the file that an execution touches.
        trust: what the caller of `load_run` allows.
        sentence: whether loading must fail.
    """

    name: str
    change: Callable[[Path, Path], None]
    trust: Any = False
    sentence: bool = True


def edit(directory: Path, *path: Any, value: Any) -> None:
    """Set an entry of run.json."""
    file = directory / "run.json"
    record = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(record))
