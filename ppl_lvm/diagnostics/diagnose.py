"""Can this fit be trusted? All questions asked of one pair, as one table.

    diagnosis = diagnose(pair, history, x, held_out=(y,))
    print(diagnosis)             # a table, verdicts first
    diagnosis.to_json()          # one list of rows

A question that has no answer for this pair becomes a row "cannot say" with the reason; it never
costs the other rows.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ppl_lvm.diagnostics import (
    calibration,
    convergence,
    gaps,
    gradient,
    khat,
    latents,
    mixtures,
    predictive,
    tightness,
)
from ppl_lvm.diagnostics.finding import CannotSayError, Finding, cannot_say
from ppl_lvm.pair import Pair
from ppl_lvm.particles.plan import make_plan

MAX_ROWS = 1000
ANNEALED_ROWS, SANDWICH_ROWS = 300, 100
KEYS = ("question", "name", "value", "error", "threshold", "verdict", "remedy")
STYLES = {"good": "green", "look": "yellow", "bad": "bold red", "cannot say": "dim"}
NAMES = {
    "convergence": "convergence of the bound",
    "tightness": "gap between ELBO and log p(x)",
    "sandwich": "sandwich on simulated data",
    "gaps": "approximation and amortisation gap",
    "generalisation": "generalisation gap",
    "khat": "Pareto k̂",
    "calibration": "simulation-based calibration",
    "predictive": "predictive checks",
    "two_sample": "classifier two-sample test",
    "loo": "leave-one-out",
    "latents": "use of the latent space",
    "mixtures": "components",
    "gradient": "gradient",
}
Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Diagnosis:
    """The rows, and what they were computed from by question (for pictures).

    Attributes:
        findings: the table's rows in the order of the questions.
        details: diagnostic's name ("khat", "tightness", …) -> its dataclass.
        seconds: diagnostic's name -> how long it took.
    """

    findings: tuple[Finding, ...]
    details: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary a row: question, name, value, error, threshold, verdict, remedy, and
        source and why."""
        rows = [row.to_dict() for row in self.findings]
        return [{k: row[k] for k in (*KEYS, "source", "why")} for row in rows]

    def counts(self) -> dict[str, int]:
        """Verdict -> number of rows."""
        return {v: sum(f.verdict == v for f in self.findings) for v in STYLES}

    @property
    def worst(self) -> str:
        """The most serious verdict: bad before look before good."""
        counts = self.counts()
        return next((v for v in ("bad", "look", "good") if counts[v]), "cannot say")

    def __rich__(self) -> Table:
        counts = ", ".join(f"{n} {v}" for v, n in self.counts().items() if n)
        table = Table(title=f"Can this fit be trusted? {counts}", box=box.SIMPLE_HEAD)
        for head in ("verdict", "what", "figure", "threshold", "why and what to do"):
            table.add_column(head, overflow="fold")
        question = ""
        for row in self.findings:
            if row.question != question:
                question = row.question
                table.add_row("", f"[bold]{question}[/bold]", "", "", "")
            said = f"{row.why} {row.remedy}".strip()
            verdict = f"[{STYLES[row.verdict]}]{row.verdict}[/]"
            table.add_row(verdict, _plain(row.name), row.figure, row.threshold, _plain(said))
        return table

    def __str__(self) -> str:
        console = Console(width=120, no_color=True, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    said = lines[0] if lines else "no reason given"
    return said if isinstance(error, CannotSayError) else f"{type(error).__name__}: {said}"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # "z[0]" is no markup


def diagnose(
    pair: Pair,
    history: Mapping[str, Sequence[float]],
    *batch: Any,
    held_out: tuple[Any, ...] | None = None,
    restarts: Sequence[float] = (),
    temperatures: int = 100,
    seed: int = 0,
    say: Say | None = None,
) -> Diagnosis:
    """Ask every question of a fitted pair.

    Args:
        history: the run's, "bound" with one value a step.
        batch: the training rows. At most 1,000 of them are used, 300 for annealing.
        held_out: rows that training did not see; q, bounds and predictions are then judged on
            them, and the generalisation gap is measured.
        restarts: final bounds of the restarts that may be chosen.
        temperatures: of the annealing; more make log p(x) tighter and cost in proportion.
        say: called as say(name, done, total) before each diagnostic.
    """
    asking = _Asking(pair, history, batch, held_out, tuple(restarts), temperatures, seed)
    findings: list[Finding] = []
    details: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    steps = asking.steps()
    for i, (name, question, ask) in enumerate(steps):
        if say is not None:
            say(name, i, len(steps))
        start = time.perf_counter()
        try:
            with pair.scope():
                details[name] = ask(details)
            findings += details[name].findings()
        except (ValueError, RuntimeError, NotImplementedError) as error:
            findings.append(cannot_say(question, NAMES[name], _reason(error)))
        seconds[name] = time.perf_counter() - start
    if say is not None:
        say("", len(steps), len(steps))
    return Diagnosis(tuple(findings), details, seconds)


class _Asking:
    """The questions with their arguments; each takes what earlier ones found."""

    def __init__(
        self,
        pair: Pair,
        history: Mapping[str, Sequence[float]],
        batch: tuple[Any, ...],
        held_out: tuple[Any, ...] | None,
        restarts: tuple[float, ...],
        temperatures: int,
        seed: int,
    ) -> None:
        self.temperatures = temperatures
        self.pair, self.history, self.restarts, self.seed = pair, history, restarts, seed
        self.train = some_rows(batch, MAX_ROWS)
        self.held_out = None if held_out is None else some_rows(held_out, MAX_ROWS)
        judged = self.train if self.held_out is None else self.held_out
        # With global latents rows belong together: those that q was fitted to.
        self.judged, self.few = judged, some_rows(judged, ANNEALED_ROWS)
        self.joint = _has_globals(pair, batch)
        if self.joint:
            self.train = self.judged = self.few = batch

    def steps(self) -> list[tuple[str, str, Callable[[dict[str, Any]], Any]]]:
        m, g, s = self.pair.model, self.pair.guide, self.seed
        x = self.judged
        return [
            ("convergence", convergence.QUESTION, lambda _: self._convergence()),
            ("tightness", tightness.QUESTION, lambda _: self._tightness()),
            ("sandwich", tightness.QUESTION, lambda _: self._sandwich()),
            ("gaps", gaps.QUESTION, self._gaps),
            ("generalisation", gaps.QUESTION, lambda _: self._generalisation()),
            ("khat", khat.QUESTION, lambda _: khat.pareto_k(m, g, *x, seed=s)),
            ("calibration", calibration.QUESTION, lambda _: calibration.sbc(m, g, *x, seed=s)),
            ("predictive", predictive.QUESTION, lambda _: predictive.check(m, g, *x, seed=s)),
            ("two_sample", predictive.QUESTION, lambda _: predictive.two_sample(m, g, *x, seed=s)),
            ("loo", predictive.QUESTION, lambda _: predictive.loo(m, g, *self.train, seed=s)),
            ("latents", latents.QUESTION, lambda _: latents.latent_use(m, g, *x, seed=s)),
            ("mixtures", mixtures.QUESTION, lambda _: mixtures.mixture(self.pair, *x)),
            ("gradient", gradient.QUESTION, self._gradient),
        ]

    def _convergence(self) -> convergence.Convergence:
        return convergence.convergence(self.history, self.restarts)

    def _tightness(self) -> tightness.Tightness:
        return tightness.tightness(
            self.pair.model,
            self.pair.guide,
            *self.few,
            temperatures=self.temperatures,
            seed=self.seed,
        )

    def _sandwich(self) -> tightness.Sandwich:
        rows = self.few if self.joint else some_rows(self.few, SANDWICH_ROWS)
        return tightness.sandwich(
            self.pair.model,
            self.pair.guide,
            *rows,
            temperatures=self.temperatures,
            seed=self.seed,
        )

    def _gaps(self, details: dict[str, Any]) -> gaps.Gaps:
        found = details.get("tightness")
        evidence: Tensor | None = None if found is None else found.best
        return gaps.gaps(
            self.pair.model, self.pair.guide, *self.few, log_evidence=evidence, seed=self.seed
        )

    def _generalisation(self) -> gaps.Generalisation:
        if self.held_out is None:
            raise CannotSayError(
                "No held-out rows were given (fit with validation=, or pass them)."
            )
        return gaps.generalisation(
            self.pair.model, self.pair.guide, self.train, self.held_out, seed=self.seed
        )

    def _gradient(self, details: dict[str, Any]) -> gradient.GradientQuality:
        found = details.get("convergence")
        converged = None if found is None else found.converged
        return gradient.gradient_quality(
            self.pair, *self.train, converged=converged, seed=self.seed
        )


def some_rows(batch: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """At most `count` rows, spread evenly over the batch."""
    rows = len(batch[0])
    if rows <= count:
        return batch
    index = torch.linspace(0, rows - 1, count).round().long()
    return tuple(
        t[index] if isinstance(t, Tensor) and t.dim() and len(t) == rows else t for t in batch
    )


def _has_globals(pair: Pair, batch: tuple[Any, ...]) -> bool:
    with pair.scope():
        return make_plan(pair.model, pair.guide, batch, {}).data_plate is None


def restart_bounds(restarts: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Final bounds of a run's restarts (`run.restarts`), without degenerate or broken ones."""
    return tuple(
        float(r["bound"])
        for r in restarts
        if r.get("degenerate") is None and r.get("bound") is not None and math.isfinite(r["bound"])
    )
