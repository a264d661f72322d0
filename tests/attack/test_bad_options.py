"""Options of every command: in range, or one sentence and exit status 2.

Commands and options are read from the parsers.
"""

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from bad_inputs import INTERNAL, Outcomes, report
from public_subjects import X

from command_line import run_command
from ppl_lvm import benchmarks, fit
from ppl_lvm.cli import application
from ppl_lvm.models import PPCA

NUMBERS = ("-1", "0", "1.5", "nan", "inf", "-inf", "1e400", "abc", "", "9" * 40, "0x1", "-0.0")
TEXTS = (
    "",
    " ",
    "abc",
    "a=b",
    "(",
    "1",
    "Adam(",
    "x(lr=1",
    "\x00",
    "é",
    "no/such",
    "-",
    "a:b",
    "a.py:b",
)


def judge(words: Sequence[str], option: str, folder: Path) -> str:
    """What is wrong with the answer to a command line."""
    try:
        done = run_command(*words, folder=folder)
    except Exception as error:
        return f"{' '.join(words)}: {type(error).__name__}: {str(error)[:300]}"
    if done.returncode in (0, 1) and "Traceback" not in done.stderr:
        return ""
    shown = f"{' '.join(words)}: exit {done.returncode}: {done.stderr[-400:]}"
    if done.returncode != 2 or "Traceback" in done.stderr:
        return shown
    if INTERNAL.search(done.stderr):
        return f"words of internals: {shown}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if len(lines) > 3 and not lines[0].lower().startswith("usage"):
        return f"long: {shown}"
    name = option.lstrip("-")
    named = any(n in done.stderr for n in (option, name, name.replace("-", "_"), *words[1:2]))
    return "" if named else f"unnamed: {shown}"


def right_words(folder: Path) -> dict[str, list[str]]:
    """A right command line of each command."""
    np.save(folder / "x.npy", X.numpy())
    fit(
        PPCA(1),
        None,
        str(folder / "x.npy"),
        num_steps=1,
        validation=4,
        directory=folder / "run",
        progress=False,
    )
    model, data, run = "ppl_lvm.models:PPCA", ["--data", str(folder / "x.npy")], str(folder / "run")
    settings = ["--set", "latent=1"]
    return {
        "fit": ["fit", model, *data, *settings, "--num-steps", "1"],
        "demo": ["demo"],
        "check": ["check", model, *data, *settings],
        "show": ["show", model, *data, *settings],
        "new": ["new", "mine"],
        "diagnose": ["diagnose", run, "--temperatures", "2"],
        "compare": ["compare", run, run, "--num-particles", "100"],
        "report": ["report", run],
        "impute": ["impute", run, *data, "--output", "out.npy"],
        "divergences": ["divergences", "bimodal", "--num-steps", "1"],
    }


def options(command: Any) -> Iterator[tuple[str, Sequence[str]]]:
    """Options of a command with values beyond their ranges."""
    for parameter in command.params:
        kind = parameter.type.name
        flags = [o for o in parameter.opts if o.startswith("--")]
        if not flags or getattr(parameter, "is_flag", False) or flags == ["--help"]:
            continue
        numeric = kind in ("integer", "float", "<integer integer>")
        for value in NUMBERS if numeric else TEXTS:
            yield flags[0], [value] * max(parameter.nargs, 1)


def bad_options(folder: Path, rng: random.Random, count: int | None) -> Outcomes:
    """Every option of every command with every value beyond its range."""
    commands: Any = typer.main.get_command(application.app)
    right = right_words(folder)
    assert set(commands.commands) == {*right, "bench"}
    entries = [
        (name, option, values)
        for name, command in commands.commands.items()
        if name not in ("bench", "demo")
        for option, values in options(command)
    ]
    rng.shuffle(entries)
    for name, option, values in entries[:count]:
        place = folder / "work"
        place.mkdir(exist_ok=True)
        problem = judge([*right[name], option, *values], option, place)
        yield f"{name} options", f"{name} {option} {values}: {problem}" if problem else ""


def bad_benchmark_options(folder: Path) -> Outcomes:
    """Every number of every benchmark beyond its range, which stops it at once."""
    for entry in pkgutil.iter_modules(benchmarks.__path__):
        module = importlib.import_module(f"ppl_lvm.benchmarks.{entry.name}")
        run = getattr(module, "run", None)
        for name, parameter in inspect.signature(run).parameters.items() if run else ():
            if type(parameter.default) not in (int, float):
                continue
            option = f"--{name.replace('_', '-')}"
            for value in NUMBERS:
                if (value == "0" and name == "seed") or (value == "1.5" and name == "seconds"):
                    continue
                words = ["bench", entry.name, "--smoke", f"{option}={value}"]
                problem = judge(words, option, folder)
                yield "bench options", problem


@pytest.mark.attack
def test_bad_options_of_every_command_have_sentences(tmp_path: Path) -> None:
    report(bad_options(tmp_path, random.Random(0), None))


@pytest.mark.attack
def test_bad_options_of_every_benchmark_have_sentences(tmp_path: Path) -> None:
    report(bad_benchmark_options(tmp_path))


def test_some_bad_options_have_sentences(tmp_path: Path) -> None:
    report(bad_options(tmp_path, random.Random(3), 20))
