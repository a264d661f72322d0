"""What a fit lays claim to before it begins: its rows, and its directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppl_lvm.core.storage import write_json
from ppl_lvm.runs.run import load_run, read_record

# What may differ when a run is resumed: how its steps are taken, and when they are kept.
FREE = ("engine", "steps_per_call", "checkpoint_seconds")


def open_run_directory(
    path: Path, record: dict[str, Any], resume: bool, load: Callable[[Path], Any] = load_run
) -> Any:
    """Write run.json, or check that it asks for the same run; a finished run is loaded, else None.

    Raises:
        ValueError: the directory holds a run, and it is not to be resumed, or is another one.
    """
    if (path / "run.json").exists():
        stored = read_record(path)
        if not resume:
            raise ValueError(
                f"{path} holds a run already. Continue it with resume=True (--resume), or choose "
                "another directory."
            )
        for key in ("model", "guide", "options", "data", "num_restarts"):
            asked, kept = _as_json(record[key]), stored[key]
            if key == "options":
                asked, kept = [
                    {k: v for k, v in options.items() if k not in FREE} for options in (asked, kept)
                ]
            if asked != kept:
                names = (
                    sorted(k for k in asked if asked[k] != kept.get(k))
                    if isinstance(asked, dict)
                    else []
                )
                raise ValueError(
                    f"{path} holds another run: its {key} differs in {', '.join(names) or key}. "
                    "Resume with what it was started with, or choose another directory."
                )
        return None if stored["results"] is None else load(path)
    write_json(path / "run.json", record)
    return None


def _as_json(data: Any) -> Any:
    return json.loads(json.dumps(data))
