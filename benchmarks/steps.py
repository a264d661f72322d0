"""Time per step of every estimator.

How long does a step with each estimator take, eager, captured and compiled, relative to a
hand-written step?

A step is the gradient and Adam's update, in float32, on the three programs of `gradients`:

    by hand     the estimator in plain torch, `torch.optim.Adam`
    eager       ours through Pyro's handlers, the same optimizer
    captured    our recorded step, replayed
    compiled    recording and update in one compiled function

Times are interleaved in one process. A ratio is ours over hand-written: the median over rounds of
paired ratios, with quartiles. `levels` selects levels (compiling takes 10 s or more per
estimator), `program` selects one of the three.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.gradient_suite.handwritten_adapters import handwritten
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation, ours
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.gradient_suite.subjects import known_subject
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio
from ppl_lvm.compiler import CannotCaptureError, Level, make_training_step
from ppl_lvm.core.validate import Count, Seed

TARGET = 1.3  # ratio of our best level to the hand-written step
Step = Callable[[], object]


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: Seed = 0,
    program: str | None = None,
    levels: str = "eager captured compiled",
    rows: Count = 100,
    particles: Count = 4,
    rounds: Count = 100,
) -> Result:
    """Milliseconds per step, and ratios.

    Args:
        program: belief_net, linear_gaussian or decoders; all of them by default.
        levels: which of eager, captured and compiled, in one string.
        rows: of the batch.
        particles: K, even.
    """
    programs = ["belief_net"] if smoke else list(KNOWN) if program is None else [program]
    levels_run = ["eager", "captured"] if smoke else levels.split()
    _refuse_unknown("program", programs, list(KNOWN))
    _refuse_unknown("levels", levels_run, ["eager", "captured", "compiled"])
    table: list[Row] = []
    with local_parameters():
        for name in programs:
            for estimator in _common_estimators(name, particles):
                table.append(
                    measure(
                        name, estimator, levels_run, rows, particles, 3 if smoke else rounds, seed
                    )
                )
    return harness.publish(
        "steps",
        __doc__ or "",
        table,
        draw(table),
        seed=seed,
        directory=directory,
        smoke=smoke,
        target=TARGET,
        worst={level: max(_ratios(table, level), default=None) for level in levels_run},
    )


def _refuse_unknown(option: str, words: list[str], known: list[str]) -> None:
    for word in words:
        if word not in known:
            raise ValueError(f"{option}: {word!r} is unknown. Available: {', '.join(known)}.")


def _common_estimators(program: str, particles: int) -> list[str]:
    """Estimators with a hand-written twin on this program."""
    subject = known_subject(KNOWN[program], particles, 0)
    return [hand.estimator for hand in handwritten(KNOWN[program], subject.pair, particles)]


def measure(
    program: str,
    estimator: str,
    levels: list[str],
    rows: int,
    particles: int,
    rounds: int,
    seed: int,
) -> Row:
    """One row of the table; every level has a separate pair with separate parameters."""
    steps = {"by hand": handwritten_step(program, estimator, rows, particles, seed)[0]}
    reason = ""
    for level in levels:
        step, _ = our_step(program, estimator, rows, particles, seed, cast(Level, level))
        try:
            for _ in range(6):  # recording takes three steps, compiling the fourth
                step()
        except CannotCaptureError as error:
            reason = str(error)
            continue
        steps[level] = step
    times = interleaved(steps, rounds=rounds, seed=seed)
    row: dict[str, Any] = {"program": program, "estimator": estimator}
    for name in ("by hand", *levels):
        row[f"{name}, ms"] = 1000 * median(times[name]) if name in times else None
    for level in levels:
        quartiles = ratio(times, level, "by hand") if level in times else None
        row[f"{level} / by hand"] = quartiles and quartiles[0]
        row[f"{level} quartiles"] = quartiles and f"{quartiles[1]:.2f}–{quartiles[2]:.2f}"
    row["not captured"] = reason
    return row


def handwritten_step(
    program: str, estimator: str, rows: int, particles: int, seed: int
) -> tuple[Step, list[Tensor]]:
    """A hand-written step and its parameters."""
    pair, x, hand = _find(program, estimator, rows, particles, seed, by="hand")
    learned = getattr(hand.objective, "network", None)
    parameters = [
        *pair.unconstrained_parameters.values(),
        *(learned.parameters() if learned is not None else []),
    ]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        hand.step(x)
        optimizer.step()

    return step, parameters


def our_step(
    program: str, estimator: str, rows: int, particles: int, seed: int, level: Level
) -> tuple[Step, list[Tensor]]:
    """Our step at this level and its parameters."""
    pair, x, implementation = _find(program, estimator, rows, particles, seed, by="ppl_lvm")
    objective = implementation.objective
    objective.loss(pair.model, pair.guide, x)  # initializes lazy modules
    parameters = [*pair.unconstrained_parameters.values(), *objective.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    take_step = make_training_step(
        partial(objective.loss_and_grads, pair.model, pair.guide),
        optimizer,
        level,
        watched=(pair.model, pair.guide, objective),
        announce=lambda _: None,
    )
    return partial(take_step, x), parameters


def _find(
    program: str, estimator: str, rows: int, particles: int, seed: int, by: str
) -> tuple[Any, Tensor, Implementation]:
    known = KNOWN[program]
    pair = known_subject(known, particles, seed).pair
    candidates = ours(pair, particles) if by == "ppl_lvm" else handwritten(known, pair, particles)
    implementation = next(i for i in candidates if i.estimator == estimator)
    return pair, known.data(seed, rows), implementation


def _ratios(rows: list[Row], level: str) -> list[float]:
    return [r[f"{level} / by hand"] for r in rows if r[f"{level} / by hand"] is not None]


def draw(rows: list[Row]) -> Figure:
    """Ratio of each level to the hand-written step, one line per estimator and program."""
    levels = [key.removesuffix(" / by hand") for key in rows[0] if key.endswith(" / by hand")]
    colors = {"eager": "tab:red", "captured": "tab:blue", "compiled": "tab:green"}
    figure, (axes,) = harness.new_figure(7, 1.5 + 0.25 * len(rows))
    for level in levels:
        at = [y for y, row in enumerate(rows) if row[f"{level} / by hand"] is not None]
        axes.plot(_ratios(rows, level), at, "o", color=colors[level], label=level)
    axes.axvline(TARGET, color="gray", linestyle=":", label=f"{TARGET} ×")
    axes.set_yticks(range(len(rows)), [f"{r['estimator']}, {r['program']}" for r in rows])
    axes.set(xscale="log", xlabel="time of a step relative to the hand-written one")
    axes.invert_yaxis()
    axes.legend()
    return figure


if __name__ == "__main__":
    harness.command(run)
