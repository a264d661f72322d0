"""How long does one training step take, eager, captured and compiled, against Pyro's and by hand?

Every way of taking a step runs in turn in one process, on the same batch, with Adam. Times are
milliseconds a step (median); ratios are medians of paired ratios with their quartiles, so that a
machine whose speed drifts does not decide them. `first` is the time until the first step at that
level: for ours, the eager steps that are watched and, if compiled, the compiler.
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI
from torch import Tensor

from ppl_lvm.benchmarks.record import Result, command, publish
from ppl_lvm.benchmarks.speed_programs import PROGRAMS, Program
from ppl_lvm.benchmarks.timing import interleaved, ratio, spread
from ppl_lvm.engine import CompiledSVI, Level

_OURS: tuple[Level, ...] = ("eager", "captured", "compiled")
_BASE = "pyro"
_MANY = "compiled, 32 steps a call"


def run(
    *,
    smoke: bool = False,
    directory: str | None = None,
    seed: int = 0,
    rounds: int = 30,
    programs: str = "",
) -> Result:
    """Time the programs named in `programs` (commas between), all of them if empty."""
    chosen = [name.strip() for name in programs.split(",") if name.strip()] or list(PROGRAMS)
    unknown = [name for name in chosen if name not in PROGRAMS]
    if unknown:
        raise ValueError(f"There is no program {unknown[0]!r}; there are {', '.join(PROGRAMS)}.")
    if smoke:
        chosen, rounds = ["mixture 150"], 3
    rows: list[dict[str, Any]] = []
    for name in chosen:
        rows += _time(name, rounds, seed, smoke)
        gc.collect()
    return publish(
        "speed", str(__doc__), rows, _picture(rows), seed=seed, directory=directory, smoke=smoke
    )


def _time(name: str, rounds: int, seed: int, smoke: bool) -> list[dict[str, Any]]:
    pyro.set_rng_seed(seed)
    program = PROGRAMS[name]()
    functions: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    for way, make in _ways(program, smoke).items():
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        begun = time.perf_counter()
        try:
            step = make()
            for _ in range(5):
                step()
        except Exception as error:  # a peer that cannot run a program is a row without numbers
            print(f"{name}, {way}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            continue
        functions[way], first[way] = step, time.perf_counter() - begun
    calls = _calls(functions[_BASE])
    times = interleaved(functions, rounds=rounds, calls=calls, seed=seed)
    if _MANY in times:
        times[_MANY] = [seconds / 32 for seconds in times[_MANY]]
    return [_row(name, way, times, first[way]) for way in functions]


def _row(name: str, way: str, times: dict[str, list[float]], first: float) -> dict[str, Any]:
    speedup, low, high = ratio(times, _BASE, way)
    return {
        "program": name,
        "step": way,
        "ms": 1e3 * spread(times[way])[0],
        "times faster than Pyro": speedup,
        "lower quartile": low,
        "upper quartile": high,
        "first (s)": first,
    }


def _calls(step: Callable[[], object]) -> int:
    """Calls a round: about 50 ms of the slowest way, so that a clock's tick does not matter."""
    begun = time.perf_counter()
    step()
    return max(1, min(20, int(0.05 / (time.perf_counter() - begun))))


def _ways(program: Program, smoke: bool) -> dict[str, Callable[[], Callable[[], object]]]:
    ways: dict[str, Callable[[], Callable[[], object]]] = {_BASE: lambda: _pyro(program)}
    for level in _OURS:
        ways[level] = lambda level=level: _ours(program, level)  # type: ignore[misc]
    if not smoke:
        ways[_MANY] = lambda: _many(program)
    if program.by_hand is not None:
        ways["by hand"] = lambda: _by_hand(program, compiled=False)
        if not smoke:
            ways["by hand, torch.compile"] = lambda: _by_hand(program, compiled=True)
    if program.jit is not None and not smoke:
        ways["pyro jit"] = lambda: _pyro(program, jit=True)
    return ways


def _pyro(program: Program, jit: bool = False) -> Callable[[], object]:
    model, guide = program.make()
    objective = program.jit if jit else program.loss
    assert objective is not None
    # Names of parameters may be shared between ways: each has a store of its own.
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), objective())
    return _alone(lambda: svi.step(*program.batch))


def _ours(program: Program, level: Level) -> Callable[[], object]:
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine=level)
    return _alone(lambda: svi.step(*program.batch))


def _many(program: Program) -> Callable[[], object]:
    model, guide = program.make()
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = CompiledSVI(model, guide, optimizer, program.loss(), engine="compiled")
    rows = torch.arange(len(program.batch[0])).expand(32, -1).contiguous()  # (32, B)
    return _alone(lambda: svi.steps(*program.batch, rows=rows))


def _alone(step: Callable[[], object]) -> Callable[[], object]:
    """A step with a parameter store of its own, swapped in and out around it."""
    store = pyro.get_param_store()
    own: dict[str, Any] = {"_constraints": {}, "_params": {}, "_param_to_name": {}}

    def alone() -> object:
        kept = {name: getattr(store, name) for name in own}
        for name, value in own.items():
            setattr(store, name, value)
        try:
            return step()
        finally:
            for name, value in kept.items():
                setattr(store, name, value)

    return alone


def _by_hand(program: Program, compiled: bool) -> Callable[[], object]:
    assert program.parameters is not None
    assert program.by_hand is not None
    params = program.parameters()
    leaves = [p for p in params.values() if p.requires_grad]
    optimizer = torch.optim.Adam(leaves, lr=1e-3)
    loss_of: Callable[..., Tensor] = torch.compile(program.by_hand) if compiled else program.by_hand

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(params, *program.batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _picture(rows: list[dict[str, Any]]) -> Figure:
    """Milliseconds a step, one group a program, on a logarithmic axis."""
    names = list(dict.fromkeys(row["program"] for row in rows))
    ways = list(dict.fromkeys(row["step"] for row in rows))
    figure = Figure(figsize=(9, 0.9 + 0.9 * len(names)))
    axes = figure.subplots()
    height = 0.8 / len(ways)
    for place, way in enumerate(ways):
        at = [names.index(r["program"]) + place * height for r in rows if r["step"] == way]
        axes.barh(at, [r["ms"] for r in rows if r["step"] == way], height, label=way)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a step")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    command(run)
