"""Options of every command beyond their ranges.

The answer is a sentence and exit status 2.

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
from bad_inputs import INTERNAL, Outcomes, problems
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
    """Fault of the answer to a command line."""
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
    names = [option, name, name.replace("-", "_"), *words[1:2]]
    if option == "--data":
        names.append(f"{words[-1]}: ")  # a file is named by its path
    named = any(n in done.stderr for n in names)
    return "" if named else f"unnamed: {shown}"


MODEL, DATA = "ppl_lvm.models:PPCA", ["--data", "x.npy"]
SWEEP = f"""
model = "{MODEL}"
data = "x.npy"
options = {{ settings = {{ latent = 1 }}, num_steps = 1 }}
[grid]
seed = [0]
"""
RIGHT = {
    "fit": ["fit", MODEL, *DATA, "--set", "latent=1", "--num-steps", "1"],
    "sweep": ["sweep", "sweep.toml"],
    "demo": ["demo"],
    "check": ["check", MODEL, *DATA, "--set", "latent=1"],
    "show": ["show", MODEL, *DATA, "--set", "latent=1"],
    "new": ["new", "mine"],
    "diagnose": ["diagnose", "run", "--temperatures", "2"],
    "compare": ["compare", "run", "run", "--num-particles", "100"],
    "report": ["report", "run"],
    "explore": ["explore", "run"],
    "encode": ["encode", "run", *DATA, "--output", "codes.parquet"],
    "impute": ["impute", "run", *DATA, "--output", "out.npy"],
    "divergences": ["divergences", "bimodal", "--num-steps", "1"],
}


def options(command: Any) -> Iterator[tuple[str, Sequence[str]]]:
    """Options of a command with values beyond their ranges."""
    for parameter in command.params:
        flags = [option for option in parameter.opts if option.startswith("--")]
        if flags and flags != ["--help"] and not getattr(parameter, "is_flag", False):
            for value in (*NUMBERS, *TEXTS):
                yield flags[0], [value] * max(parameter.nargs, 1)


def bad_options(folder: Path, rng: random.Random, count: int | None) -> Outcomes:
    """Every option of every command with every value beyond its range."""
    commands: Any = typer.main.get_command(application.app)
    assert set(commands.commands) == {*RIGHT, "bench"}
    np.save(folder / "x.npy", X.numpy())
    (folder / "sweep.toml").write_text(SWEEP)
    data = str(folder / "x.npy")
    fit(PPCA(1), None, data, num_steps=1, validation=4, directory=folder / "run", progress=False)
    entries = [
        (name, option, values)
        for name, command in commands.commands.items()
        if name not in ("bench", "demo")
        for option, values in options(command)
    ]
    rng.shuffle(entries)
    for name, option, values in entries[:count]:
        problem = judge([*RIGHT[name], option, *values], option, folder)
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
    assert problems(bad_options(tmp_path, random.Random(0), None)) == ""


@pytest.mark.attack
def test_bad_options_of_every_benchmark_have_sentences(tmp_path: Path) -> None:
    assert problems(bad_benchmark_options(tmp_path)) == ""


def test_negative_numbers_of_commands_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    commands: Any = typer.main.get_command(application.app)
    refused = 0
    for name in ("check", "show", "demo", "diagnose", "compare", "divergences"):
        for parameter in commands.commands[name].params:
            if type(parameter.default) is int:
                words = [*RIGHT[name], f"{parameter.opts[0]}=-1"]
                done = run_command(*words, folder=tmp_path)
                assert done.returncode == 2, words
                assert "Traceback" not in done.stderr
                assert parameter.name in done.stderr.replace("-", "_")
                refused += 1
    assert refused > 10
    assert list(tmp_path.iterdir()) == []
