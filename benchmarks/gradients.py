"""Which gradient estimators are right on this pair, and what does a given precision cost?

Every estimator that applies, by three hands (ours, Pyro's, plain torch), on three programs whose
gradients are known, or on a pair of your own:

    python -m ppl_lvm.benchmarks.gradients mine.py:Model --guide mine.py:Guide --data x.csv

For each, on the model's and on the guide's parameters:

    bias       |E g - target| / |target|; E g is a finite sum where the guide has one finite site,
               else the mean of draws, with its standard error
    variance   Σ Var g over the parameters
    SNR        |E g| / sqrt(variance)
    ms         one eager gradient, median of rounds taken in turn
    × hand     ours over the hand-written one's time: median and quartiles of pairs of one round
    cost       variance × ms: time to reach a given precision of the guide's gradient

On the three programs the target is exact. On a pair of your own it is the mean of many draws of
ours that declares itself unbiased for the same bound, and has a standard error.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.benchmarks import harness as record
from ppl_lvm.benchmarks.gradient_suite import samples
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN
from ppl_lvm.benchmarks.gradient_suite.samples import Judgment, judge, local_parameters
from ppl_lvm.benchmarks.gradient_suite.subjects import (
    SUBSAMPLED,
    BenchmarkPair,
    double,
    known_subject,
    user_subject,
)
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio

TOO_COARSE = 1.0  # a standard error of the bias, relative to the target
Measured = tuple[Row, dict[str, Judgment]]


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: int = 0,
    model: Any = None,
    guide: Any = None,
    data: Any = None,
    settings: str | None = None,
    particles: int = 2,
    rows: int = 20,
    repeats: int = 1000,
) -> Result:
    """On `model`, `guide`, `data` if given (addresses, or objects), else on the three programs.

    Args:
        settings: the model's, "components=3 latent=2".
        particles: K, of every estimator; the exact targets allow 2 or 3.
        rows: how many of the data's first rows are looked at.
        repeats: gradients drawn from every implementation.
    """
    if (model is None) != (data is None):
        raise ValueError("A pair of your own needs both: mine.py:Model and --data x.csv.")
    repeats, rounds = (20, 1) if smoke else (repeats, 50)
    found: list[Measured] = []
    torch.manual_seed(seed)
    with local_parameters():
        if model is not None:
            subject = user_subject(
                model, guide, data, settings=settings, num_particles=particles, rows=rows
            )
            with subject.pair.scope():
                torch.manual_seed(seed + 1)  # draws of its own, also for the reference itself
                subject.estimate_references(4 * repeats)
                found = measure(subject, repeats, rounds, seed)
        else:
            with double():
                for known in KNOWN.values():
                    subject = known_subject(known, particles, seed)
                    with subject.pair.scope():
                        found += measure(subject, repeats, rounds, seed)
    return record.publish(
        "gradients",
        __doc__ or "",
        [row for row, _ in found],
        draw(found),
        seed=seed,
        directory=directory,
        smoke=smoke,
        groups=[{**_label(row), "groups": _plain(groups)} for row, groups in found],
    )


def measure(subject: BenchmarkPair, repeats: int, rounds: int, seed: int) -> list[Measured]:
    """A row for every implementation, refusals included."""
    pair, batch = subject.pair, subject.batch
    positions = samples.groups(pair.model, pair.guide, batch, pair.unconstrained_parameters)
    works: list[Implementation] = []
    refused: list[Measured] = []
    for implementation in subject.implementations():
        try:
            samples.gradient(implementation.step, batch, pair.unconstrained_parameters)
            works.append(implementation)
        except (ValueError, NotImplementedError) as refusal:
            remedy = re.search(r"[Uu]se (?:an? )?([A-Z]\w+)", str(refusal))
            words = "refuses this pair" + (f": use {remedy[1]}" if remedy else "")
            refused.append((_row(subject, implementation, {}, None, words), {}))
    times = interleaved({_key(i): partial(i.step, *batch) for i in works}, rounds=rounds, seed=seed)
    by_row = {_key(i): i for i in subject.subsampled(1)}
    by_batch = {_key(i): i for i in subject.subsampled(len(batch[0]))}
    evidence = subject.log_evidence()
    found: list[Measured] = []
    for implementation in works:
        torch.manual_seed(seed)  # its draws do not depend on which others are there
        key, seen = _key(implementation), look(subject, implementation, repeats)
        judged = judge_groups(subject.target(implementation), seen, positions)
        scaled = (by_row if subject.is_finite(implementation) else by_batch).get(key)
        words = verdict(implementation, judged)
        if scaled is not None:  # what a batch stands for is a hand-written one's caller's business
            words += fault_of_value(seen, look(subject, scaled, repeats), evidence)
        row = _row(subject, implementation, judged, median(times[key]), words)
        row["× hand"] = _against_hand(times, implementation)
        found.append((row, judged))
    return found + refused


def _against_hand(times: dict[str, list[float]], implementation: Implementation) -> str | None:
    """Our time over the hand-written one's: median and quartiles of paired ratios."""
    hand = f"hand {implementation.estimator}"
    if implementation.by != "ppl_lvm" or hand not in times:
        return None
    middle, low, high = ratio(times, _key(implementation), hand)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


@dataclass(frozen=True)
class Seen:
    """Gradients (R, P) of one implementation, their exact mean (P,) if there is one, its bound."""

    draws: Tensor
    mean: Tensor | None
    bound: float
    error: float


def look(subject: BenchmarkPair, implementation: Implementation, repeats: int) -> Seen:
    """Draw from an implementation, and enumerate it where that can be done."""
    samples.gradient(
        implementation.step, subject.batch, subject.pair.unconstrained_parameters
    )  # the first look
    step = samples.steady(implementation.step, implementation.objective)
    draws, bounds = samples.sample(
        step, subject.batch, subject.pair.unconstrained_parameters, repeats
    )
    exactly = subject.exact_mean(implementation)
    if exactly is not None:
        return Seen(draws, exactly[0], exactly[1], 0.0)
    return Seen(draws, None, bounds.mean().item(), (bounds.std() / repeats**0.5).item())


def judge_groups(
    target: tuple[Tensor, Tensor | None] | None, seen: Seen, positions: dict[str, Tensor]
) -> dict[str, Judgment]:
    """One judgement for each group of parameters."""
    if target is None:
        target = torch.full_like(seen.draws[0], math.nan), None
    wanted, reference = target
    return {
        name: judge(
            seen.draws[:, where],
            None if seen.mean is None else seen.mean[where],
            wanted[where],
            None if reference is None else reference[:, where],
        )
        for name, where in positions.items()
    }


def fault_of_value(alone: Seen, scaled: Seen, evidence: tuple[float, float]) -> str:
    """What is wrong with a bound where the batch stands for SUBSAMPLED times as many rows."""
    rounding = 1e-5 * abs(evidence[0])  # of single precision, by another order of sums
    above = SUBSAMPLED * (evidence[0] + evidence[1] + rounding)
    slack = 5 * (scaled.error + SUBSAMPLED * alone.error) + 1e-6 * abs(scaled.bound)
    if SUBSAMPLED * (alone.bound - 5 * alone.error) > above:
        return "; above log p(x)"
    if scaled.bound - slack > above:
        return "; not a bound under subsampling"
    if abs(scaled.bound - SUBSAMPLED * alone.bound) > slack:
        return "; another bound under subsampling"
    return ""


def _key(implementation: Implementation) -> str:
    return f"{implementation.by} {implementation.estimator}"


def verdict(implementation: Implementation, judged: dict[str, Judgment]) -> str:
    """In words: unbiased, or what is wrong where."""
    faults = []
    for name, judgment in judged.items():
        where = name.replace("guide ", "site ") if name.startswith("guide ") else f"the {name}"
        if judgment.zero:
            faults.append(f"zero gradient at {where}")
        elif judgment.biased:
            faults.append(f"biased by {judgment.bias:.0%} at {where}")
    if all(math.isnan(judgment.bias) for judgment in judged.values()):
        faults = ["no target to compare with"]
    elif not faults and any(judgment.error > TOO_COARSE for judgment in judged.values()):
        faults = ["too few draws to tell a bias as large as the gradient"]
    elif not faults:
        faults = ["unbiased" if implementation.declared else "no bias seen"]
    if not implementation.declared:
        faults[-1] += " (declared biased or only consistent)"
    return "; ".join(faults)


def _row(
    subject: BenchmarkPair,
    implementation: Implementation,
    judged: dict[str, Judgment],
    seconds: float | None,
    words: str,
) -> dict[str, Any]:
    model = judged.get("model")
    guide = [j for name, j in judged.items() if name != "model"]
    variance = sum(j.variance for j in guide) if guide else None
    milliseconds = None if seconds is None else 1000 * seconds
    worst = max(guide, key=lambda j: j.bias, default=None)
    return {
        "program": subject.name,
        "estimator": implementation.estimator,
        "by": implementation.by,
        "target": implementation.target,
        "bias model": model and _number(model.bias),
        "bias guide": worst and _number(worst.bias),
        "± guide": worst and _number(worst.error),
        "var model": model and model.variance,
        "var guide": variance,
        "SNR guide": min((j.snr for j in guide), default=None),
        "ms": milliseconds,
        "× hand": None,
        "cost": None if variance is None or milliseconds is None else variance * milliseconds,
        "verdict": words,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _label(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in ("program", "estimator", "by")}


def _plain(groups: dict[str, Judgment]) -> dict[str, Any]:
    return {name: asdict(judgment) for name, judgment in groups.items()}


def draw(found: Sequence[Measured]) -> Figure:
    """Cost of each estimator on the guide's gradient; a cross where it is not unbiased."""
    programs = list(dict.fromkeys(row["program"] for row, _ in found))
    figure = Figure(figsize=(6 * len(programs), 5), layout="constrained")
    colors = {"ppl_lvm": "tab:blue", "Pyro": "tab:red", "hand": "tab:gray"}
    panels = figure.subplots(1, len(programs), squeeze=False)[0]
    for axes, program in zip(panels, programs, strict=True):
        rows = [row for row, _ in found if row["program"] == program and row["cost"]]
        rows = [row for row in rows if row["bias guide"] is not None]
        rows.sort(key=lambda row: row["cost"], reverse=True)
        for y, row in enumerate(rows):
            marker = "o" if row["verdict"].startswith("unbiased") else "x"
            axes.plot(row["cost"], y, marker, color=colors[row["by"]])
        axes.set_yticks(range(len(rows)), [row["estimator"] for row in rows], fontsize=8)
        for by, color in colors.items():
            axes.plot([], [], "o", color=color, label=by)
        axes.plot([], [], "x", color="black", label="not unbiased")
        axes.set(xscale="log", title=program, xlabel="guide's gradient: variance × ms")
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    record.command(run)
