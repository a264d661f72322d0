"""What a benchmark leaves behind: a table on the terminal, one JSON file and one picture.

Every benchmark module asks one question in its docstring and has a function

    run(*, smoke=False, directory=None, seed=0, ...) -> dict

that returns what its JSON holds. `command(run)` makes the command line of it: each keyword of
`run` is an option of the same name, `model` is the one positional word.
"""

import argparse
import inspect
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ppl_lvm.core.storage import jsonable

Row = Mapping[str, Any]
Result = dict[str, Any]


def publish(
    name: str,
    question: str,
    rows: Sequence[Row],
    figure: Figure,
    *,
    seed: int,
    directory: str | Path | None = None,
    smoke: bool = False,
    **findings: Any,
) -> Result:
    """Print the rows, write `directory`/name.json and .png, and return what the JSON holds.

    `directory` is runs/bench unless given. `findings` are numbers that are not rows.
    """
    folder = Path(directory or Path("runs") / "bench")
    folder.mkdir(parents=True, exist_ok=True)
    result: Result = {
        "benchmark": name,
        "question": question.strip().partition("\n")[0],
        "smoke": smoke,
        "environment": environment(seed),
        "rows": [dict(row) for row in rows],
        **findings,
    }
    show(result["question"], rows)
    (folder / f"{name}.json").write_text(json.dumps(jsonable(result), indent=2) + "\n")
    figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    print(f"written: {folder / name}.json and .png")
    return result


def environment(seed: int) -> dict[str, Any]:
    """Versions, threads, seed, commit and the machine's devices in words."""
    packages = ("ppl_lvm", "torch", "pyro-ppl", "numpy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": device(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def commit() -> str | None:
    """This checkout's commit, "+" after it if tracked files differ; None outside of git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return f"{head}{'+' if git('status', '--porcelain', '-uno') else ''}" if head else None
    except FileNotFoundError:
        return None


def device() -> str:
    """Processor, cores, and the accelerator if there is one."""
    words = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        words = names[0].partition(":")[2].strip() if names else words
    words = f"{words}, {torch.get_num_threads()} threads"
    return f"{words}; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else words


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows under the keys of the first, numbers to four digits."""
    table = Table(title=title, title_justify="left")
    columns = list(rows[0]) if rows else []
    for column in columns:
        numeric = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(words(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def words(value: Any) -> str:
    """A cell as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def command(run: Callable[..., Result], argv: Sequence[str] | None = None) -> Result:
    """Call `run` with what the command line says: `--smoke --directory D --seed 1`, and its own."""
    module = inspect.getmodule(run)
    parser = argparse.ArgumentParser(description=(module and module.__doc__) or run.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, parameter in inspect.signature(run).parameters.items():
        if name == "model":
            parser.add_argument("model", nargs="?", default=parameter.default)
            continue
        option = f"--{name.replace('_', '-')}"
        if parameter.default is False:
            parser.add_argument(option, action="store_true")
        else:
            kind = type(parameter.default) if parameter.default is not None else str
            parser.add_argument(option, type=kind, default=parameter.default)
    return run(**vars(parser.parse_args(argv)))
