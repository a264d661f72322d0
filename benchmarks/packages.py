"""Packages built on Pyro: losses and time per step.

Which programs of other packages are captured, with which losses, and how much faster are they?

The programs of scvi-tools, cell2location, CellBender, MuVI, pyroVED, TyXe and chirho as their
packages make them, at small sizes, with made-up data; pyro-cov's model and those of Pyro's examples
written from their formulas (`package_suite/examples.py`). A package that is not installed is left
out (`package_suite/installed.py` says how to install them).

The losses of 50 steps are compared in double precision. cell2location makes single-precision
numbers in its model, and is compared in single precision. Times are processor time, medians of
interleaved rounds in single precision on one thread. "compile" is the first compilation, from a new
cache directory.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.package_suite.base import PackageProgram
from ppl_lvm.benchmarks.package_suite.catalog import PROGRAMS
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio, spread
from ppl_lvm.compiler.svi import CompiledSVI
from ppl_lvm.core.validate import Count, Seed

SMOKE = ("LDA", "DMM, packed")
SINGLE = ("cell2location",)
WARM = 8  # steps until a step is captured


def make(program: PackageProgram, kind: Any, seed: int, **options: Any) -> tuple[Any, Any]:
    """(the SVI, its arguments of a step), in a new parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    fit = program.make()
    optimizer = pyro.optim.Adam({"lr": program.rate})
    svi = kind(fit.model, fit.guide, optimizer, fit.loss, **options)
    pyro.set_rng_seed(seed)
    return svi, fit.args


def difference(program: PackageProgram, steps: int, seed: int, **options: Any) -> float:
    """Largest relative difference of a loss from SVI's."""
    losses = []
    for kind, chosen in ((SVI, {}), (CompiledSVI, options)):
        svi, args = make(program, kind, seed, **chosen)
        losses.append([svi.step(*args) for _ in range(steps)])
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(*losses, strict=True))


def measure(name: str, seed: int, rounds: int, compile_it: bool) -> Row:
    """Level or reason, agreement, speed and compile time of one program."""
    program, quiet = PROGRAMS[name], {"announce": lambda line: None}
    row: dict[str, Any] = {"program": name, "package": program.package}
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if name in SINGLE else torch.float64)
    try:
        row["difference"] = difference(program, 50, seed, **quiet)
    finally:
        torch.set_default_dtype(previous)
    reference, args = make(program, SVI, seed)
    steps = {"SVI": _in_own_store(reference, args, WARM)}
    svi, args = make(program, CompiledSVI, seed, **quiet)
    for _ in range(WARM):
        svi.step(*args)
    row["level"], row["reason"] = svi.level, svi.capture_error or ""
    if svi.capture_error is None:  # "auto" would compile meanwhile
        svi, args = make(program, CompiledSVI, seed, engine="captured", **quiet)
    steps["auto"] = _in_own_store(svi, args, WARM)
    if svi.capture_error is None and compile_it:
        compiled, args = make(program, CompiledSVI, seed, engine="compiled", **quiet)
        begun = time.perf_counter()
        try:
            steps["compiled"] = _in_own_store(compiled, args, WARM)
            row["compile, s"] = time.perf_counter() - begun
        except ValueError as error:
            row["reason"] = str(error)
    times = interleaved(steps, rounds=rounds, calls=2, seed=seed, clock=time.process_time)
    row["SVI, ms"] = 1e3 * spread(times["SVI"])[0]
    row["times SVI"] = ratio(times, "SVI", "auto")[0]
    row["compiled, times SVI"] = ratio(times, "SVI", "compiled")[0] if "compiled" in times else None
    row.setdefault("compile, s", None)
    return row


def _in_own_store(svi: Any, args: Any, warm: int) -> Callable[[], object]:
    """A step of this SVI, with the parameter store that it has filled."""
    store = vars(pyro.get_param_store())
    for _ in range(warm):
        svi.step(*args)
    stored = dict(store)  # clearing the store makes new dictionaries

    def step() -> None:
        store.update(stored)
        svi.step(*args)

    return step


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: Seed = 0,
    rounds: Count = 20,
    only: str = "",
    compiled: bool = True,
) -> Result:
    """All programs whose package is installed.

    Args:
        rounds: of interleaved timing.
        only: the part of programs whose name contains this text.
        compiled: measure compiled steps too.
    """
    torch.set_num_threads(1)
    names = [n for n in (SMOKE if smoke else PROGRAMS) if only in n]
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": folder}),
    ):
        for name in names:
            try:
                rows.append(measure(name, seed, 2 if smoke else rounds, compiled and not smoke))
                print(", ".join(f"{k} {harness.format_cell(v)}" for k, v in rows[-1].items()))
            except ImportError as error:
                print(f"{name}: {error}")
    return harness.publish(
        "packages", __doc__ or "", rows, draw(rows), seed=seed, directory=directory, smoke=smoke
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Speed against SVI, captured and compiled."""
    shown = [
        {"program": row["program"], "level": level, "speed": row[key]}
        for row in rows
        for level, key in ((row["level"], "times SVI"), ("compiled", "compiled, times SVI"))
        if row[key] is not None
    ]
    keys = ("program", "level", "speed")
    figure, axes = harness.dot_figure(shown, *keys, least=0.5, label="times faster than SVI")
    axes.axvline(1, color="gray", linestyle=":")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    harness.command(run)
