"""How long does one training step take, at every level, against Pyro, plain torch and NumPyro?

Every way of taking a step runs in turn in one process, on the same batch, with Adam, in float32.
Times are milliseconds a step (median); ratios are medians of paired ratios with their quartiles,
so that a machine whose speed drifts does not decide them. `first` is the time until the first
steps at that level, in this process. The floor is the least that a step's products of matrices, or
its least traffic of memory, take on this machine (`floor.py`).

`--program "vae 128"` takes one program (commas between several). `--starts` adds, each in a fresh
process, the cold and the warm start, peak memory, and the number of steps after which compiling
has paid. NumPyro's columns need the extra `bench`.
"""

import gc
import time
from typing import Any

import pyro
from matplotlib.figure import Figure

from ppl_lvm.benchmarks.harness import Result, command, publish, show
from ppl_lvm.benchmarks.speed_suite import cold_start as speed_start
from ppl_lvm.benchmarks.speed_suite import numpyro_peers
from ppl_lvm.benchmarks.speed_suite import roofline as floor
from ppl_lvm.benchmarks.speed_suite.programs import PROGRAMS, Program
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio, spread
from ppl_lvm.benchmarks.speed_suite.variants import (
    CAPTURED,
    COMPILED,
    EAGER,
    HAND,
    HAND_COMPILED,
    MANY,
    PYRO,
    SCAN,
    SEVERAL,
    UPDATE,
    Step,
    parameters,
    variants,
)

_SECONDS = 90.0  # that the rounds of one program may take
_SMOKE = (PYRO, EAGER, CAPTURED, HAND)
# Ours against the same kind of call: above 1, ours is faster.
_PAIRS = ((COMPILED, UPDATE), (MANY, SCAN), (COMPILED, HAND_COMPILED), (MANY, HAND_COMPILED))


def run(
    *,
    smoke: bool = False,
    directory: str | None = None,
    seed: int = 0,
    rounds: int = 30,
    program: str = "",
    starts: bool = False,
) -> Result:
    """Time the programs named in `program` (commas between), all of them if empty."""
    chosen = [name.strip() for name in program.split(",") if name.strip()] or list(PROGRAMS)
    unknown = [name for name in chosen if name not in PROGRAMS]
    if unknown:
        raise ValueError(f"There is no program {unknown[0]!r}; there are {', '.join(PROGRAMS)}.")
    if smoke:
        chosen, rounds = ["mixture 150"], 3
    machine = floor.measure(smoke)
    rows: list[dict[str, Any]] = []
    against: list[dict[str, Any]] = []
    for name in chosen:
        found, compared = _measure(name, rounds, seed, smoke, machine)
        if starts and not smoke:
            _add_starts(name, found)
        rows, against = rows + found, against + compared
        gc.collect()
    if against:
        show("Times faster than the same kind of call elsewhere", against)
    numpyro = "" if numpyro_peers.installed() else numpyro_peers.WITHOUT
    if numpyro:
        print(numpyro)
    return publish(
        "speed",
        str(__doc__),
        rows,
        _picture(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        against=against,
        numpyro=numpyro or "installed",
        machine={
            "matrix GFLOP/s": machine.operations / 1e9,
            "bandwidth GB/s": machine.bandwidth / 1e9,
        },
    )


def _measure(
    name: str, rounds: int, seed: int, smoke: bool, machine: floor.Machine
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a program, one a way, and its comparisons."""
    pyro.set_rng_seed(seed)
    program = PROGRAMS[name]()
    least = _floor(program, machine)
    functions, first = _ready(name, program, seed, smoke)
    calls = _calls(functions[PYRO])
    each = sum(_seconds(step) for step in functions.values())
    rounds = max(5, min(rounds, int(_SECONDS / (calls * each))))
    times = interleaved(functions, rounds=rounds, calls=calls, seed=seed)
    for way in SEVERAL:
        if way in times:
            times[way] = [seconds / program.many for seconds in times[way]]
    rows = [_row(name, way, times, first[way], least) for way in functions]
    if name in numpyro_peers.PROGRAMS and not numpyro_peers.installed():
        rows.append(dict.fromkeys(rows[0]) | {"program": name, "step": "numpyro: not installed"})
    return rows, [_against(name, a, b, times) for a, b in _PAIRS if a in times and b in times]


def _ready(
    name: str, program: Program, seed: int, smoke: bool
) -> tuple[dict[str, Step], dict[str, float]]:
    """Every way past its first steps, and how long these took."""
    functions: dict[str, Step] = {}
    first: dict[str, float] = {}
    for way, make in variants(name, program, seed).items():
        if smoke and way not in _SMOKE:
            continue
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        begun = time.perf_counter()
        try:
            step = make()
            for _ in range(speed_start.WARM_UP):
                step()
        except Exception as error:  # a peer that cannot run a program is a row that is missing
            print(f"{name}, {way}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            continue
        functions[way], first[way] = step, time.perf_counter() - begun
    return functions, first


def _floor(program: Program, machine: floor.Machine) -> float:
    pyro.clear_param_store()
    model, guide = program.make()
    objective = program.loss()
    with pyro.get_param_store().scope():
        work = floor.operations(lambda: objective.loss_and_grads(model, guide, *program.batch))
    return floor.floor(machine, work, floor.least_bytes(program.batch, parameters(program)))


def _row(
    name: str, way: str, times: dict[str, list[float]], first: float, least: float
) -> dict[str, Any]:
    speedup, low, high = ratio(times, PYRO, way)
    seconds = spread(times[way])[0]
    return {
        "program": name,
        "step": way,
        "ms": 1e3 * seconds,
        "times faster than Pyro": speedup,
        "lower quartile": low,
        "upper quartile": high,
        "times the floor": seconds / least,
        "first (s)": first,
    }


def _against(name: str, ours: str, theirs: str, times: dict[str, list[float]]) -> dict[str, Any]:
    speedup, low, high = ratio(times, theirs, ours)
    return {
        "program": name,
        "ours": ours,
        "theirs": theirs,
        "times faster": speedup,
        "lower quartile": low,
        "upper quartile": high,
    }


def _add_starts(name: str, rows: list[dict[str, Any]]) -> None:
    """Cold and warm starts, memory, and the steps after which a way has overtaken the captured."""
    for row in rows:
        known = row["ms"] is not None
        row.update(speed_start.starts(name, row["step"]) if known else dict.fromkeys(_START))
    captured = next((row for row in rows if row["step"] == CAPTURED), None)
    for row in rows:
        row["steps until paid"] = _paid(row, captured)


_START = ("cold start (s)", "warm start (s)", "peak MB")


def _paid(row: dict[str, Any], captured: dict[str, Any] | None) -> int | None:
    """Steps until a compiled way, started cold, has been quicker than captured from the start."""
    if captured is None or row["step"] not in (COMPILED, MANY):
        return None
    if row["cold start (s)"] is None or captured["cold start (s)"] is None:
        return None
    gain = (captured["ms"] - row["ms"]) / 1e3
    cost = row["cold start (s)"] - captured["cold start (s)"]
    return int(cost / gain) if gain > 0 else None


def _seconds(step: Step) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def _calls(step: Step) -> int:
    """Calls a round: about 50 ms of Pyro's step, so that a clock's tick does not matter."""
    return max(1, min(20, int(0.05 / _seconds(step))))


def _picture(rows: list[dict[str, Any]]) -> Figure:
    """Milliseconds a step, one group a program, on a logarithmic axis."""
    rows = [row for row in rows if row["ms"] is not None]
    names = list(dict.fromkeys(row["program"] for row in rows))
    listed = list(dict.fromkeys(row["step"] for row in rows))
    figure = Figure(figsize=(9, 1.2 + 1.2 * len(names)))
    axes = figure.subplots()
    height = 0.8 / len(listed)
    for place, way in enumerate(listed):
        at = [names.index(r["program"]) + place * height for r in rows if r["step"] == way]
        axes.barh(at, [r["ms"] for r in rows if r["step"] == way], height, label=way)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a step")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    command(run)
