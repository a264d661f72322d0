"""Time per training step at every level.

How long does one training step take, at every level, against Pyro, plain torch and NumPyro?

All variants of a step are interleaved in one process, on the same batch, with Adam, in float32.
Times are milliseconds per step (median); ratios are medians of paired ratios with quartiles, which
are robust against a drifting clock speed. `first` is the time until the first steps at that level,
in this process. The floor is the least time of a step's matrix products or memory traffic on this
machine (`roofline.py`).

`--program "vae 128"` selects programs (separated by commas). `--starts` adds, each in a new
process, the cold and the warm start, peak memory, and the number of steps after which compiling
has paid off. `--fits` adds the time of `fit` over that of bare steps (`fit_overhead.py`). NumPyro's
columns need the extra `bench`.
"""

import gc
import time
from typing import Any

import pyro
from matplotlib.figure import Figure

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result
from ppl_lvm.benchmarks.speed_suite import cold_start, fit_overhead, numpyro_peers, roofline
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
from ppl_lvm.core.validate import Count, Seed

_SECONDS = 90.0  # limit for the rounds of one program
_SMOKE = (PYRO, EAGER, CAPTURED, HAND)
# Ours against the same kind of call; above 1 ours is faster.
_PAIRS = ((COMPILED, UPDATE), (MANY, SCAN), (COMPILED, HAND_COMPILED), (MANY, HAND_COMPILED))


def run(
    *,
    smoke: bool = False,
    directory: str | None = None,
    seed: Seed = 0,
    rounds: Count = 30,
    program: str = "",
    starts: bool = False,
    fits: bool = False,
) -> Result:
    """Time the programs named in `program` (separated by commas), all by default."""
    names = [name.strip() for name in program.split(",") if name.strip()] or list(PROGRAMS)
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        raise ValueError(f"Unknown program {unknown[0]!r}. Available: {', '.join(PROGRAMS)}.")
    if smoke:
        names, rounds = ["mixture 150"], 3
    machine = roofline.measure(smoke)
    rows: list[dict[str, Any]] = []
    against: list[dict[str, Any]] = []
    over: list[dict[str, Any]] = []
    for name in names:
        measured, compared = _measure(name, rounds, seed, smoke, machine)
        if starts and not smoke:
            _add_starts(name, measured)
        rows, against = rows + measured, against + compared
        if fits and not smoke:
            over += fit_overhead.ratios(name, PROGRAMS[name](), max(1, rounds // 6), seed)
        gc.collect()
    if against:
        harness.show("Speed-up over the same kind of call elsewhere", against)
    if over:
        harness.show("Time of fit over that of bare steps", over)
    numpyro = "" if numpyro_peers.installed() else numpyro_peers.WITHOUT
    if numpyro:
        print(numpyro)
    return harness.publish(
        "speed",
        str(__doc__),
        rows,
        _picture(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        against=against,
        fits=over,
        numpyro=numpyro or "installed",
        machine={
            "matrix GFLOP/s": machine.operations / 1e9,
            "bandwidth GB/s": machine.bandwidth / 1e9,
        },
    )


def _measure(
    name: str, rounds: int, seed: int, smoke: bool, machine: roofline.Machine
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a program, one per variant, and its comparisons."""
    pyro.set_rng_seed(seed)
    program = PROGRAMS[name]()
    least = _floor(program, machine)
    functions, first = _ready(name, program, seed, smoke)
    calls = _calls(functions[PYRO])
    each = sum(_seconds(step) for step in functions.values())
    rounds = max(5, min(rounds, int(_SECONDS / (calls * each))))
    times = interleaved(functions, rounds=rounds, calls=calls, seed=seed)
    for variant in SEVERAL:
        if variant in times:
            times[variant] = [seconds / program.many for seconds in times[variant]]
    rows = [_row(name, variant, times, first[variant], least) for variant in functions]
    if name in numpyro_peers.PROGRAMS and not numpyro_peers.installed():
        rows.append(dict.fromkeys(rows[0]) | {"program": name, "step": "numpyro: not installed"})
    return rows, [_against(name, a, b, times) for a, b in _PAIRS if a in times and b in times]


def _ready(
    name: str, program: Program, seed: int, smoke: bool
) -> tuple[dict[str, Step], dict[str, float]]:
    """Every variant after its first steps, and the time of these."""
    functions: dict[str, Step] = {}
    first: dict[str, float] = {}
    for variant, make in variants(name, program, seed).items():
        if smoke and variant not in _SMOKE:
            continue
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        start = time.perf_counter()
        try:
            step = make()
            for _ in range(cold_start.WARM_UP):
                step()
        except Exception as error:  # a peer without support has no row
            print(f"{name}, {variant}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            continue
        functions[variant], first[variant] = step, time.perf_counter() - start
    return functions, first


def _floor(program: Program, machine: roofline.Machine) -> float:
    pyro.clear_param_store()
    model, guide = program.make()
    objective = program.loss()
    with pyro.get_param_store().scope():
        work = roofline.operations(lambda: objective.loss_and_grads(model, guide, *program.batch))
    return roofline.floor(machine, work, roofline.least_bytes(program.batch, parameters(program)))


def _row(
    name: str, variant: str, times: dict[str, list[float]], first: float, least: float
) -> dict[str, Any]:
    speedup, low, high = ratio(times, PYRO, variant)
    seconds = spread(times[variant])[0]
    return {
        "program": name,
        "step": variant,
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
    """Cold and warm starts, memory, and steps until a variant overtakes captured steps."""
    for row in rows:
        known = row["ms"] is not None
        row.update(cold_start.starts(name, row["step"]) if known else dict.fromkeys(_START))
    captured = next((row for row in rows if row["step"] == CAPTURED), None)
    for row in rows:
        row["steps until paid"] = _paid(row, captured)


_START = ("cold start (s)", "warm start (s)", "peak MB")


def _paid(row: dict[str, Any], captured: dict[str, Any] | None) -> int | None:
    """Steps until a compiled variant after a cold start overtakes captured steps."""
    if captured is None or row["step"] not in (COMPILED, MANY):
        return None
    if row["cold start (s)"] is None or captured["cold start (s)"] is None:
        return None
    gain = (captured["ms"] - row["ms"]) / 1e3
    cost = row["cold start (s)"] - captured["cold start (s)"]
    return int(cost / gain) if gain > 0 else None


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _calls(step: Step) -> int:
    """Calls per round: about 50 ms of Pyro's step, far above the clock's resolution."""
    return max(1, min(20, int(0.05 / _seconds(step))))


def _picture(rows: list[dict[str, Any]]) -> Figure:
    """Milliseconds per step, one group per program, on a logarithmic axis."""
    rows = [row for row in rows if row["ms"] is not None]
    names = list(dict.fromkeys(row["program"] for row in rows))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    figure, (axes,) = harness.new_figure(9, 1.2 + 1.2 * len(names))
    height = 0.8 / len(steps)
    for place, variant in enumerate(steps):
        at = [names.index(r["program"]) + place * height for r in rows if r["step"] == variant]
        axes.barh(at, [r["ms"] for r in rows if r["step"] == variant], height, label=variant)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per step")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    harness.command(run)
