"""Hostile run directories."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from directory_attack import ESCAPE, Attack, edit
from hostile_files import file_attacks
from hostile_programs import program_attacks

SEED = 16
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 10**9, 10**400, 1e308, float("nan"), "x", ESCAPE, "../../x", "os:system"),
    *([], {}, [[[]]], {"__class__": "x"}, ["touch", "x"], "x" * 10_000),
)


def _entries(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all entries of nested data."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _entries(value, (*path, key))


def _fields(record: dict[str, Any], count: int) -> Iterator[Attack]:
    """Entries of run.json replaced by junk, and missing; what still loads is harmless."""
    paths = [p for p in _entries(record) if p[0] != "restarts" or p[1:2] != (1,)]
    random.seed(SEED)
    chosen = [(path, value) for path in paths for value in (*JUNK, "missing")]
    for path, value in random.sample(chosen, min(count, len(chosen))):

        def change(directory: Path, _: Path, path: Any = path, value: Any = value) -> None:
            edit(directory, *path, value=value)
            if value == "missing":
                file = directory / "run.json"
                record = part = json.loads(file.read_text())
                for key in path[:-1]:
                    part = part[key]
                del part[path[-1]]
                file.write_text(json.dumps(record))

        yield Attack(f"{path} = {str(value)[:40]!r}", change, sentence=False)


def attacks(record: dict[str, Any], count: int) -> list[Attack]:
    """All attacks; `count` of them replace entries of `record`, the run.json."""
    return [*program_attacks(), *file_attacks(), *_fields(record, count)]
