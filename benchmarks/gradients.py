"""Bias, variance and cost of gradient estimators.

Which gradient estimators are right on this pair, and what does a given precision cost?

Every supported estimator in three implementations (ours, Pyro's, plain torch), on three programs
with known gradients, or on a user's pair:

    python -m ppl_lvm.benchmarks.gradients mine.py:Model --guide mine.py:Guide --data x.csv

For each, on the model's and on the guide's parameters:

    bias       |E g - target| / |target|; E g is a finite sum if the guide has one finite site,
               else the mean of draws, with its standard error
    variance   Σ Var g over the parameters
    SNR        |E g| / sqrt(variance)
    ms         one eager gradient, median of interleaved rounds
    × hand     ours over the hand-written one's time: median and quartiles of pairs of one round
    cost       variance × ms: time to reach a given precision of the guide's gradient

On the three programs the target is exact. On a user's pair it is the mean of many draws of our
estimator that declares `unbiased` for the same bound, with a standard error.
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

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.gradient_suite import samples
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN
from ppl_lvm.benchmarks.gradient_suite.samples import Judgment, judge, local_parameters
from ppl_lvm.benchmarks.gradient_suite.subjects import (
    SUBSAMPLED,
    BenchmarkPair,
    known_subject,
    user_subject,
)
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio
from ppl_lvm.core.validate import Count, Seed
from ppl_lvm.testing.expectations import double_precision

TOO_COARSE = 1.0  # a standard error of the bias, relative to the target
Measured = tuple[Row, dict[str, Judgment]]


def run(
    *,
    smoke: bool = False,
    directory: str | Path | None = None,
    seed: Seed = 0,
    model: Any = None,
    guide: Any = None,
    data: Any = None,
    settings: str | None = None,
    particles: Count = 2,
    rows: Count = 20,
    repeats: Count = 1000,
) -> Result:
    """Measure on `model`, `guide`, `data` (addresses or objects), by default on the three programs.

    Args:
        settings: the model's, "components=3 latent=2".
        particles: K, of every estimator; the exact targets allow 2 or 3.
        rows: number of rows of the data, from the first.
        repeats: gradients drawn from every implementation.
    """
    if (model is None) != (data is None):
        raise ValueError(
            "A user's pair needs a model and data. Pass both: mine.py:Model --data x.csv."
        )
    repeats, rounds = (20, 1) if smoke else (repeats, 50)
    measured: list[Measured] = []
    torch.manual_seed(seed)
    with local_parameters():
        if model is not None:
            subject = user_subject(
                model, guide, data, settings=settings, num_particles=particles, rows=rows
            )
            with subject.pair.scope():
                torch.manual_seed(seed + 1)  # independent of the draws below
                subject.estimate_references(4 * repeats)
                measured = measure(subject, repeats, rounds, seed)
        else:
            with double_precision():
                for known in KNOWN.values():
                    subject = known_subject(known, particles, seed)
                    with subject.pair.scope():
                        measured += measure(subject, repeats, rounds, seed)
    return harness.publish(
        "gradients",
        __doc__ or "",
        [row for row, _ in measured],
        draw(measured),
        seed=seed,
        directory=directory,
        smoke=smoke,
        groups=[{**_label(row), "groups": _plain(groups)} for row, groups in measured],
    )


def measure(subject: BenchmarkPair, repeats: int, rounds: int, seed: int) -> list[Measured]:
    """One row per implementation, including those that reject the pair."""
    pair, batch = subject.pair, subject.batch
    positions = samples.groups(pair.model, pair.guide, batch, pair.unconstrained_parameters)
    supported: list[Implementation] = []
    rejected: list[Measured] = []
    for implementation in subject.implementations():
        try:
            samples.gradient(implementation.step, batch, pair.unconstrained_parameters)
            supported.append(implementation)
        except (ValueError, NotImplementedError) as error:
            remedy = re.search(r"[Uu]se (?:an? )?([A-Z]\w+)", str(error))
            words = "rejects this pair" + (f": use {remedy[1]}" if remedy else "")
            rejected.append((_row(subject, implementation, {}, None, words), {}))
    times = interleaved(
        {_key(i): partial(i.step, *batch) for i in supported}, rounds=rounds, seed=seed
    )
    by_row = {_key(i): i for i in subject.subsampled(1)}
    by_batch = {_key(i): i for i in subject.subsampled(len(batch[0]))}
    evidence = subject.log_evidence()
    measured: list[Measured] = []
    for implementation in supported:
        torch.manual_seed(seed)  # draws do not depend on the other implementations
        key, sample = _key(implementation), collect(subject, implementation, repeats)
        judged = judge_groups(subject.target(implementation), sample, positions)
        scaled = (by_row if subject.is_finite(implementation) else by_batch).get(key)
        words = verdict(implementation, judged)
        if scaled is not None:  # callers of hand-written ones scale themselves
            words += fault_of_value(sample, collect(subject, scaled, repeats), evidence)
        row = _row(subject, implementation, judged, median(times[key]), words)
        row["× hand"] = _against_hand(times, implementation)
        measured.append((row, judged))
    return measured + rejected


def _against_hand(times: dict[str, list[float]], implementation: Implementation) -> str | None:
    """Our time over the hand-written one's: median and quartiles of paired ratios."""
    hand = f"hand {implementation.estimator}"
    if implementation.by != "ppl_lvm" or hand not in times:
        return None
    middle, low, high = ratio(times, _key(implementation), hand)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


@dataclass(frozen=True)
class Sample:
    """Gradients (R, P), their exact mean (P,) or None, the bound and its error."""

    draws: Tensor
    mean: Tensor | None
    bound: float
    error: float


def collect(subject: BenchmarkPair, implementation: Implementation, repeats: int) -> Sample:
    """Draw gradients, and compute their exact mean if possible."""
    samples.gradient(
        implementation.step, subject.batch, subject.pair.unconstrained_parameters
    )  # analyzes the pair
    step = samples.steady(implementation.step, implementation.objective)
    draws, bounds = samples.sample(
        step, subject.batch, subject.pair.unconstrained_parameters, repeats
    )
    exact = subject.exact_mean(implementation)
    if exact is not None:
        return Sample(draws, exact[0], exact[1], 0.0)
    return Sample(draws, None, bounds.mean().item(), (bounds.std() / repeats**0.5).item())


def judge_groups(
    target: tuple[Tensor, Tensor | None] | None, sample: Sample, positions: dict[str, Tensor]
) -> dict[str, Judgment]:
    """One judgment per parameter group."""
    if target is None:
        target = torch.full_like(sample.draws[0], math.nan), None
    mean, reference = target
    return {
        name: judge(
            sample.draws[:, where],
            None if sample.mean is None else sample.mean[where],
            mean[where],
            None if reference is None else reference[:, where],
        )
        for name, where in positions.items()
    }


def fault_of_value(unscaled: Sample, scaled: Sample, evidence: tuple[float, float]) -> str:
    """Fault of a bound of a batch out of SUBSAMPLED times as many rows, or ""."""
    rounding = 1e-5 * abs(evidence[0])  # single precision, other order of summation
    above = SUBSAMPLED * (evidence[0] + evidence[1] + rounding)
    slack = 5 * (scaled.error + SUBSAMPLED * unscaled.error) + 1e-6 * abs(scaled.bound)
    if SUBSAMPLED * (unscaled.bound - 5 * unscaled.error) > above:
        return "; above log p(x)"
    if scaled.bound - slack > above:
        return "; not a bound under subsampling"
    if abs(scaled.bound - SUBSAMPLED * unscaled.bound) > slack:
        return "; another bound under subsampling"
    return ""


def _key(implementation: Implementation) -> str:
    return f"{implementation.by} {implementation.estimator}"


def verdict(implementation: Implementation, judged: dict[str, Judgment]) -> str:
    """Text of the verdict: unbiased, or the faults by parameter group."""
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


def draw(measured: Sequence[Measured]) -> Figure:
    """Cost of each estimator's guide gradient; crosses are not unbiased."""
    programs = list(dict.fromkeys(row["program"] for row, _ in measured))
    figure, panels = harness.new_figure(6 * len(programs), 5, columns=len(programs))
    colors = {"ppl_lvm": "tab:blue", "Pyro": "tab:red", "hand": "tab:gray"}
    for axes, program in zip(panels, programs, strict=True):
        rows = [row for row, _ in measured if row["program"] == program and row["cost"]]
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
    harness.command(run)
