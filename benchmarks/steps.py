"""What does a step with each estimator cost, eager, captured, compiled, beside one by hand?

A step is the gradient and Adam's update, in float32, on the three programs of `gradients`:

    by hand     the estimator in plain torch, `torch.optim.Adam`
    eager       ours through Pyro's handlers, the same optimizer
    captured    ours replayed from its recording
    compiled    the recording and the update in one compiled function

Times are taken in turn in one process. A ratio is ours over the hand-written one's: the median of
pairs of one round, with quartiles. `levels` leaves some out (compiling takes 10 s or more for each
estimator), `program` takes one of the three.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.benchmarks import harness as record
from ppl_lvm.benchmarks.gradient_suite.handwritten_adapters import handwritten
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation, ours
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.gradient_suite.subjects import known_subject
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio
from ppl_lvm.compiler import CannotCaptureError, Level, make_training_step

TARGET = 1.3  # of the best of our levels over the hand-written step
Step = Callable[[], object]


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: int = 0,
    program: str | None = None,
    levels: str = "eager captured compiled",
    rows: int = 100,
    particles: int = 4,
    rounds: int = 100,
) -> Result:
    """Milliseconds a step, and ratios.

    Args:
        program: belief_net, linear_gaussian or decoders; all of them by default.
        levels: which of eager, captured and compiled, in one string.
        rows: of the batch.
        particles: K, even.
    """
    chosen = ["belief_net"] if smoke else list(KNOWN) if program is None else [program]
    asked = ["eager", "captured"] if smoke else levels.split()
    _refuse_unknown("program", chosen, list(KNOWN))
    _refuse_unknown("levels", asked, ["eager", "captured", "compiled"])
    found: list[Row] = []
    with local_parameters():
        for name in chosen:
            for estimator in _both(name, particles):
                found.append(
                    measure(name, estimator, asked, rows, particles, 3 if smoke else rounds, seed)
                )
    return record.publish(
        "steps",
        __doc__ or "",
        found,
        draw(found),
        seed=seed,
        directory=directory,
        smoke=smoke,
        target=TARGET,
        worst={level: max(_ratios(found, level), default=None) for level in asked},
    )


def _refuse_unknown(what: str, given: list[str], known: list[str]) -> None:
    for word in given:
        if word not in known:
            raise ValueError(f"{what}: {word!r} is none of {', '.join(known)}.")


def _both(program: str, particles: int) -> list[str]:
    """Estimators that are there by hand and by us."""
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
    """One row of the table: a pair of its own, with parameters of its own, for every level."""
    steps = {"by hand": handwritten_loss(program, estimator, rows, particles, seed)[0]}
    refused = ""
    for level in levels:
        step, _ = by_us(program, estimator, rows, particles, seed, cast(Level, level))
        try:
            for _ in range(6):  # recording takes three steps, compiling the fourth
                step()
        except CannotCaptureError as refusal:
            refused = str(refusal)
            continue
        steps[level] = step
    times = interleaved(steps, rounds=rounds, seed=seed)
    row: dict[str, Any] = {"program": program, "estimator": estimator}
    for name in ("by hand", *levels):
        row[f"{name}, ms"] = 1000 * median(times[name]) if name in times else None
    for level in levels:
        found = ratio(times, level, "by hand") if level in times else None
        row[f"{level} / by hand"] = found and found[0]
        row[f"{level} quartiles"] = found and f"{found[1]:.2f}–{found[2]:.2f}"
    row["not captured"] = refused
    return row


def handwritten_loss(
    program: str, estimator: str, rows: int, particles: int, seed: int
) -> tuple[Step, list[Tensor]]:
    """A hand-written step, and the parameters that it trains."""
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


def by_us(
    program: str, estimator: str, rows: int, particles: int, seed: int, level: Level
) -> tuple[Step, list[Tensor]]:
    """Our step at this level, and the parameters that it trains."""
    pair, x, mine = _find(program, estimator, rows, particles, seed, by="ppl_lvm")
    objective = mine.objective
    objective.loss(pair.model, pair.guide, x)  # learned parts take their sizes
    parameters = [*pair.unconstrained_parameters.values(), *objective.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    whole = make_training_step(
        partial(objective.loss_and_grads, pair.model, pair.guide),
        optimizer,
        level,
        watched=(pair.model, pair.guide, objective),
        announce=lambda _: None,
    )
    return partial(whole, x), parameters


def _find(
    program: str, estimator: str, rows: int, particles: int, seed: int, by: str
) -> tuple[Any, Tensor, Implementation]:
    known = KNOWN[program]
    pair = known_subject(known, particles, seed).pair
    offered = ours(pair, particles) if by == "ppl_lvm" else handwritten(known, pair, particles)
    found = next(i for i in offered if i.estimator == estimator)
    return pair, known.data(seed, rows), found


def _ratios(rows: list[Row], level: str) -> list[float]:
    return [r[f"{level} / by hand"] for r in rows if r[f"{level} / by hand"] is not None]


def draw(rows: list[Row]) -> Figure:
    """Ratio of each level to the hand-written step, a line for each estimator and program."""
    levels = [key.removesuffix(" / by hand") for key in rows[0] if key.endswith(" / by hand")]
    colors = {"eager": "tab:red", "captured": "tab:blue", "compiled": "tab:green"}
    figure = Figure(figsize=(7, 1.5 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for level in levels:
        at = [y for y, row in enumerate(rows) if row[f"{level} / by hand"] is not None]
        axes.plot(_ratios(rows, level), at, "o", color=colors[level], label=level)
    axes.axvline(TARGET, color="gray", linestyle=":", label=f"{TARGET} ×")
    axes.set_yticks(range(len(rows)), [f"{r['estimator']}, {r['program']}" for r in rows])
    axes.set(xscale="log", xlabel="time of a step over the hand-written one's")
    axes.invert_yaxis()
    axes.legend()
    return figure


if __name__ == "__main__":
    record.command(run)
