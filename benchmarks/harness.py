"""Tables, JSON files, figures and command lines of benchmarks.

The docstring of a benchmark module has a title and a question. The module has a function

    run(*, smoke=False, directory=None, seed=0, ...) -> Result

that returns the content of its JSON file. `command(run)` is its command line: each keyword of `run`
is an option of the same name, except the positional argument `model`.
"""

import argparse
import inspect
import logging
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ppl_lvm.core.arguments import hints_of
from ppl_lvm.core.errors import ArgumentError
from ppl_lvm.core.storage import jsonable, write_json
from ppl_lvm.core.validate import check_arguments

Row = Mapping[str, Any]
Result = dict[str, Any]


def publish(
    name: str,
    documentation: str,
    rows: Sequence[Row],
    figure: Figure,
    *,
    seed: int,
    directory: str | Path | None = None,
    smoke: bool = False,
    **findings: Any,
) -> Result:
    """Print the rows, write `directory`/name.json and .png, and return what the JSON holds.

    `directory` is runs/bench by default. `findings` are further results, not in rows.
    """
    folder = Path(directory or Path("runs") / "bench")
    folder.mkdir(parents=True, exist_ok=True)
    result: Result = {
        "benchmark": name,
        "question": question(documentation),
        "smoke": smoke,
        "environment": environment(seed),
        "rows": [dict(row) for row in rows],
        **findings,
    }
    show(result["question"], rows)
    write_json(folder / f"{name}.json", jsonable(result))
    figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    print(f"written: {folder / name}.json and .png")
    return result


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings and notes of fits inside."""
    log = logging.getLogger("ppl_lvm")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def question(documentation: str) -> str:
    """The question in a benchmark's docstring, on one line."""
    match = re.search(r"^[A-Z][^?.]*\?", documentation, re.MULTILINE)
    if match is None:
        raise ValueError("The docstring of a benchmark has no question. Add one after its title.")
    return " ".join(match.group().split())


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def dot_figure(
    rows: Sequence[Row], name: str, kind: str, value: str, *, least: float, label: str
) -> tuple[Figure, Axes]:
    """Values of rows that have one, on a logarithmic scale: a line for each name, a color a kind.

    Args:
        name, kind, value: keys of the rows.
        least: smaller values are drawn there.
        label: of the axis.
    """
    done = [row for row in rows if value in row]
    names = list(dict.fromkeys(row[name] for row in done))
    figure, (axes,) = new_figure(8, 1 + 0.25 * max(1, len(names)))
    for shown in dict.fromkeys(row[kind] for row in done):
        of = [row for row in done if row[kind] == shown]
        values = [max(row[value], least) for row in of]
        axes.plot(values, [names.index(row[name]) for row in of], "o", label=shown, ms=4)
    axes.set(xscale="log", xlabel=label)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    return figure, axes


def environment(seed: int) -> dict[str, Any]:
    """Versions, threads, seed, commit and device names."""
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
    """Commit of this checkout, with "+" if tracked files differ; None outside of git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        process = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return process.stdout.strip() if process.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return f"{head}{'+' if git('status', '--porcelain', '-uno') else ''}" if head else None
    except FileNotFoundError:
        return None


def device() -> str:
    """Names of the processor and the accelerator, number of threads."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    name = f"{name}, {torch.get_num_threads()} threads"
    return f"{name}; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table with the keys of the first, numbers to four digits."""
    table = Table(title=title, title_justify="left")
    columns = list(rows[0]) if rows else []
    for column in columns:
        numeric = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(format_cell(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def format_cell(value: Any) -> str:
    """Text of a table cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def command(run: Callable[..., Result], argv: Sequence[str] | None = None) -> Result:
    """Call `run` with options from the command line, one per keyword."""
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
    arguments = vars(parser.parse_args(argv))
    try:
        return run(**check_arguments(arguments, hints_of(run), parser.prog))
    except ArgumentError as error:
        parser.error(str(error))
