"""Options of every command: in range, or one sentence and exit status 2.

Commands and options are read from the parsers.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import typer.main
from bad_inputs import INTERNAL, Outcomes, report
from public_subjects import X

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


def status(words: Sequence[str]) -> tuple[Any, str]:
    """Exit status and errors of a command line."""
    errors = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["ppl-lvm", *words]),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            application.main()
        except SystemExit as stop:
            return stop.code or 0, errors.getvalue()
        except BaseException as error:
            return type(error).__name__, str(error)
    return 0, errors.getvalue()


def judge(words: Sequence[str], option: str) -> str:
    """What is wrong with the answer to a command line."""
    code, errors = status(words)
    if code in (0, 1):
        return ("Traceback" in errors and errors[-300:]) or ""
    shown = f"{' '.join(words)}: exit {code}: {errors[-400:]}"
    if code != 2 or "Traceback" in errors:
        return shown
    if INTERNAL.search(errors):
        return f"words of internals: {shown}"
    name = option.lstrip("-")
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    usage = errors.lstrip().lower().startswith("usage")
    if not usage and len(lines) > 3:
        return f"long: {shown}"
    if not any(n in errors for n in (option, name, name.replace("-", "_"), *words[1:2])):
        return f"unnamed: {shown}"
    return ""


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
        with contextlib.chdir(place):
            problem = judge([*right[name], option, *values], option)
        yield f"{name} options", f"{name} {option} {values}: {problem}" if problem else ""


def bad_benchmark_options(count: int | None) -> Outcomes:
    """Every option of every benchmark with values beyond its range, which stop it at once."""
    entries = []
    for entry in pkgutil.iter_modules(benchmarks.__path__):
        module = importlib.import_module(f"ppl_lvm.benchmarks.{entry.name}")
        for name, parameter in inspect.signature(
            getattr(module, "run", lambda: None)
        ).parameters.items():
            if isinstance(parameter.default, int) and not isinstance(parameter.default, bool):
                for value in NUMBERS if name != "seed" else (v for v in NUMBERS if v != "0"):
                    if value != "0" or name != "seed":
                        entries.append((entry.name, f"--{name.replace('_', '-')}={value}"))
    for name, words in entries[:count]:
        code, errors = status(["bench", name, "--smoke", words])
        option = words.partition("=")[0]
        wrong = (
            code != 2
            or "Traceback" in errors
            or (option not in errors and option[2:].replace("-", "_") not in errors)
        )
        yield (
            "bench options",
            f"bench {name} {words}: exit {code}: {errors[-300:]}" if wrong else "",
        )


@pytest.mark.attack
def test_bad_options_of_every_command_have_sentences(tmp_path: Path) -> None:
    report(bad_options(tmp_path, random.Random(0), None))


@pytest.mark.attack
def test_bad_options_of_every_benchmark_have_sentences() -> None:
    report(bad_benchmark_options(None))


def test_some_bad_options_have_sentences(tmp_path: Path) -> None:
    report(bad_options(tmp_path, random.Random(3), 20))
