"""Time of `fit` over that of bare steps.

    ratio = (seconds of `fit` for w + n steps - those for w steps) / seconds of n bare steps

so that progress, history, evaluations, checks and checkpoints count, and what is done once (check,
compilation, evidence, figures) does not; `fit, once` is the time of the latter and of w steps. The
three are interleaved, after a first `fit` that fills the caches.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pyro
import torch

from ppl_lvm import fit
from ppl_lvm.benchmarks.speed_suite.programs import Program
from ppl_lvm.benchmarks.speed_suite.timing import spread
from ppl_lvm.compiler import CompiledSVI, Level

LEVELS: tuple[Level, ...] = ("captured", "compiled")
_STEPS, _FIRST = 2000, 64
_SECONDS = 20.0  # of the bare steps of a round, at most


def ratios(name: str, program: Program, rounds: int, seed: int) -> list[dict[str, Any]]:
    """One row per level."""
    return [_row(name, program, level, rounds, seed) for level in LEVELS]


def _row(name: str, program: Program, level: Level, rounds: int, seed: int) -> dict[str, Any]:
    steps = program.many  # for a first estimate
    seconds = _bare_seconds(program, level, steps, seed) / steps
    steps = max(program.many, min(_STEPS, int(_SECONDS / seconds)))
    calls: dict[str, Callable[[], float]] = {
        "all": lambda: _fit_seconds(program, level, _FIRST + steps, seed),
        "once": lambda: _fit_seconds(program, level, _FIRST, seed),
        "bare": lambda: _bare_seconds(program, level, steps, seed),
    }
    calls["once"]()
    times = [{key: call() for key, call in calls.items()} for _ in range(rounds)]
    ratio, low, high = spread([(t["all"] - t["once"]) / t["bare"] for t in times])
    return {
        "program": name,
        "level": level,
        "steps": steps,
        "bare (ms)": 1e3 * spread([t["bare"] for t in times])[0] / steps,
        "fit over bare": ratio,
        "lower quartile": low,
        "upper quartile": high,
        "fit, once (s)": spread([t["once"] for t in times])[0],
    }


def _fit_seconds(program: Program, level: Level, steps: int, seed: int) -> float:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide = program.make()
    data = program.batch if len(program.batch) > 1 else program.batch[0]
    options: dict[str, Any] = {"engine": level, "num_steps": steps, "accuracy": 0, "method": "svi"}
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        fit(model, guide, data, objective=program.loss(), directory=directory, **options)
        return time.perf_counter() - start


def _bare_seconds(program: Program, level: Level, steps: int, seed: int) -> float:
    """Seconds of steps; compiled ones are taken many per call."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine=level)
    for _ in range(5):
        svi.step(*program.batch)
    rows = torch.arange(len(program.batch[0])).expand(program.many, -1).contiguous()
    taken = 0
    start = time.perf_counter()
    while taken < steps:
        if level == "compiled":
            svi.steps(*program.batch, rows=rows)
            taken += program.many
        else:
            svi.step(*program.batch)
            taken += 1
    return (time.perf_counter() - start) * steps / taken
