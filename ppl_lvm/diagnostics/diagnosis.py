"""All diagnostics of one fitted pair, as one table.

    diagnosis = diagnose(pair, history, x, held_out=(y,))
    print(diagnosis)             # a table, verdicts first
    diagnosis.to_json()          # one list of rows

A diagnostic that fails becomes a row "unknown" with the reason; the other rows are unaffected. A
row is "exact" where nothing is estimated, and "not applicable" where the fit has no such part.

False positives: on fits without a fault (data drawn from the model, a guide that can be the
posterior, a falling learning rate), 2 of 2,333 verdicts were "warning" and none "bad", in 2 of 127
tables (1.6%; 95% interval 0.2% to 5.6%). Measured by benchmarks/false_alarms.py on three such fits
(local latents, a global one, a mixture; 42 or 43 seeds each). Rows without a grade do not count.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Group

from ppl_lvm.core.console import plain_text
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.html_tables import html_paragraph, html_table
from ppl_lvm.core.types import Batch, Say
from ppl_lvm.diagnostics import DIAGNOSTICS
from ppl_lvm.diagnostics.base import PER_ROW, Context, Quantity, Restarts
from ppl_lvm.diagnostics.finding import VERDICTS, Finding
from ppl_lvm.diagnostics.table import table
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

MIN_REFITS = 20
FAULT = "A fault of the programs or of ppl_lvm: see ppl-lvm check."
# Parts of remedies that a fit may have followed already: the part, what stays of it, the condition.
FOLLOWED: tuple[tuple[str, str, Callable[[Context], Any]], ...] = (
    (", or train with IWAE or Rényi bounds", "", lambda c: c.particles_of_bound > 1),
    (", or importance-weighted training", "", lambda c: c.particles_of_bound > 1),
    (
        "Anneal the KL term (kl_annealing), weaken",
        "Weaken",
        lambda c: c.options.get("kl_annealing"),
    ),
    ("Anneal the KL term", "Lower kl_weight to 1, anneal the KL term", lambda c: c.tempered),
    ("Stop earlier (patience), regularize", "Regularize", lambda c: c.options.get("patience")),
    ("Clip gradients (clip_norm), or use", "Use", lambda c: c.options.get("clip_norm")),
    (" or clip gradients", "", lambda c: c.options.get("clip_norm")),
)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The rows of the table, and the results that they came from.

    Attributes:
        findings: rows in the order of the questions.
        details: slug of a diagnostic ("khat", "tightness", …) -> its result.
        seconds: slug of a diagnostic -> its run time.
    """

    findings: tuple[Finding, ...]
    details: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary per row, with the fields of `Finding` as keys."""
        return [row.to_dict() for row in self.findings]

    def counts(self) -> dict[str, int]:
        """Verdict -> number of rows."""
        return {v: sum(f.verdict == v for f in self.findings) for v in VERDICTS}

    @property
    def worst(self) -> str:
        """The most serious verdict: bad before warning before good."""
        counts = self.counts()
        return next((v for v in ("bad", "warning", "good") if counts[v]), "unknown")

    def __rich__(self) -> Group:
        return table(self.findings)

    def __str__(self) -> str:
        return plain_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = ("verdict", "quantity", "value", "threshold", "why", "remedy")
        counts = ", ".join(f"{n} {v}" for v, n in self.counts().items() if n)
        parts = [html_paragraph(f"Can this fit be trusted? {counts}")]
        for question in dict.fromkeys(f.question for f in self.findings):
            rows = [
                (f.verdict, f.name, f.formatted, f.threshold, f.why, f.remedy)
                for f in self.findings
                if f.question == question
            ]
            parts.append(html_table(head, rows, question))
        return "".join(parts)


def diagnose(
    pair: ModelGuidePair,
    history: Mapping[str, Sequence[float]],
    *batch: Any,
    held_out: Batch | None = None,
    restarts: Restarts | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    refits: int = 0,
    temperatures: int = 100,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    say: Say | None = None,
) -> Diagnosis:
    """Run every diagnostic that applies to a fitted pair.

    Args:
        history: history of the run, "bound" with one value per step.
        batch: the training rows. At most 1,000 of them are used, 300 for annealing; fewer where
            the guide draws many latents per row (see `Budget`).
        held_out: rows that training did not see. q, bounds and predictions are then evaluated on
            them, and the generalization gap is measured.
        restarts: the eligible restarts and the chosen one.
        quantities: further test quantities of the predictive check, name -> a function of data
            sets (R, N, P) that gives one value each (R,).
        refits: simulated data sets that a guide which does not read the data is fitted to, for its
            calibration: 0, or at least 20. The cost is that of as many short fits.
        temperatures: temperatures of the annealing; more make log p(x) tighter and cost in
            proportion. A guide of more than two latents per row takes fewer, in proportion.
        options: of the fit, as its record has them; a remedy that was followed is not repeated.
        columns: names of the columns of the first tensor.
        say: called as say(slug, done, total) before each diagnostic.
    """
    if 0 < refits < MIN_REFITS:
        raise ValueError(
            f"refits={refits}: too few to test calibration. Use at least {MIN_REFITS}, or 0."
        )
    context = Context(
        pair,
        history,
        batch,
        held_out=held_out,
        restarts=restarts,
        quantities=quantities,
        refits=refits,
        temperatures=temperatures,
        seed=seed,
        options=options,
        columns=columns,
    )
    findings: list[Finding] = []
    seconds: dict[str, float] = {}
    diagnostics = [d for d in DIAGNOSTICS if d.applies(context)]
    for i, diagnostic in enumerate(diagnostics):
        if say is not None:
            say(diagnostic.slug, i, len(diagnostics))
        start = time.perf_counter()
        try:
            with pair.scope():
                result = context.results[diagnostic.slug] = diagnostic.run(context)
            findings += [
                replace(f, slug=diagnostic.slug, remedy=_not_followed(f.remedy, context))
                for f in result.findings()
            ]
        except Exception as error:  # one diagnostic must not cost the others
            findings.append(
                Finding(
                    question=diagnostic.question,
                    name=diagnostic.title,
                    slug=diagnostic.slug,
                    why=_reason(error),
                    remedy=error.remedy if isinstance(error, CannotSayError) else FAULT,
                    verdict=error.verdict if isinstance(error, CannotSayError) else "unknown",
                )
            )
        seconds[diagnostic.slug] = time.perf_counter() - start
    if say is not None:
        say("", len(diagnostics), len(diagnostics))
    return Diagnosis(tuple(findings), context.results, seconds)


def _not_followed(remedy: str, context: Context) -> str:
    """A remedy without what the fit did already."""
    for part, rest, followed in FOLLOWED:
        if part in remedy and followed(context):
            remedy = remedy.replace(part, rest)
    return remedy


def _reason(error: Exception) -> str:
    """First line of an error; with its type, unless it is a `CannotSayError`."""
    line = next(iter(str(error).splitlines()), "no reason given")
    return line if isinstance(error, CannotSayError) else f"{type(error).__name__}: {line}"


def eligible_restarts(
    entries: Sequence[Mapping[str, Any]], trajectories: Sequence[Trajectory] = ()
) -> Restarts:
    """The restarts of a run (`run.restarts`) that are neither degenerate nor broken."""
    eligible = [
        i
        for i, entry in enumerate(entries)
        if entry.get("chosen")
        or (entry.get("degenerate") is None and math.isfinite(entry.get("bound") or math.nan))
    ]
    return Restarts(
        tuple(float(entries[i]["bound"] or math.nan) for i in eligible),
        tuple(trajectories[i] for i in eligible) if trajectories else (),
        next((k for k, i in enumerate(eligible) if entries[i].get("chosen")), 0),
        tuple(
            float(entries[i]["initial_bound"]) for i in eligible if "initial_bound" in entries[i]
        ),
        tuple(float(entries[i].get("bound_monte_carlo_error") or 0.0) for i in eligible),
        resolution=max(
            (min(max(entries[i].get("predicted_gain") or 0.0, 0.0), PER_ROW) for i in eligible),
            default=0.0,
        ),
        arrival=next(
            (e for e in entries if e.get("chosen") and e.get("predicted_gain") is not None), {}
        ),
    )
