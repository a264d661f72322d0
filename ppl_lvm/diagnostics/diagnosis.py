"""Can this fit be trusted? All questions asked of one pair, as one table.

    diagnosis = diagnose(pair, history, x, held_out=(y,))
    print(diagnosis)             # a table, verdicts first
    diagnosis.to_json()          # one list of rows

A question that has no answer for this pair becomes a row "unknown" with the reason; it never
costs the other rows.

False alarms: on fits with nothing wrong (data drawn from the model, a guide that can be the
posterior, a falling learning rate), 2 of 2,333 verdicts were "warning" and none "bad", in 2 of 127
tables (1.6%; 95% interval 0.2% to 5.6%). Measured by benchmarks/false_alarms.py on three such fits
(local latents, a global one, a mixture; 42 or 43 seeds each); "unknown" is no verdict.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from torch import Tensor

from ppl_lvm.core.console import plain_text
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics import (
    bound_tightness,
    calibration,
    convergence,
    gradient_noise,
    inference_gaps,
    latent_usage,
    leave_one_out,
    mixture_components,
    parameter_drift,
    pareto_k,
    predictive_checks,
)
from ppl_lvm.diagnostics.budget import Budget, evenly_spaced_rows
from ppl_lvm.diagnostics.finding import VERDICTS, Finding, cannot_say
from ppl_lvm.diagnostics.refit import refitting
from ppl_lvm.diagnostics.table import table
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

KEYS = ("question", "name", "value", "error", "threshold", "verdict", "remedy")
NAMES = {
    "convergence": "convergence of the bound",
    "drift": "drift of the parameters",
    "tightness": "gap between ELBO and log p(x)",
    "sandwich": "sandwich on simulated data",
    "gaps": "approximation and amortisation gap",
    "generalization": "generalisation gap",
    "khat": "Pareto k̂",
    "calibration": "simulation-based calibration",
    "vsbc": "calibration by fitting again",
    "predictive": "predictive checks",
    "prior": "prior predictive checks",
    "two_sample": "classifier two-sample test",
    "loo": "leave-one-out",
    "latents": "use of the latent space",
    "mixtures": "components",
    "stability": "stability of the clustering over restarts",
    "gradient": "gradient",
}
FEWEST_REFITS = 20
Say = Callable[[str, int, int], None]
Step = tuple[str, str, Callable[[dict[str, Any]], Any]]


@dataclass(frozen=True)
class Restarts:
    """The starts of a run that may be chosen.

    Attributes:
        bounds: their final bounds, nats per row.
        trails: what each left behind; none where nothing was kept.
        chosen: which of them is the fit.
    """

    bounds: tuple[float, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    chosen: int = 0


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
        return {v: sum(f.verdict == v for f in self.findings) for v in VERDICTS}

    @property
    def worst(self) -> str:
        """The most serious verdict: bad before look before good."""
        counts = self.counts()
        return next((v for v in ("bad", "warning", "good") if counts[v]), "unknown")

    def __rich__(self) -> Group:
        return table(self.findings)

    def __str__(self) -> str:
        return plain_text(self)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    said = lines[0] if lines else "no reason given"
    return said if isinstance(error, CannotSayError) else f"{type(error).__name__}: {said}"


def diagnose(
    pair: ModelGuidePair,
    history: Mapping[str, Sequence[float]],
    *batch: Any,
    held_out: tuple[Any, ...] | None = None,
    starts: Restarts | None = None,
    quantities: Mapping[str, predictive_checks.Quantity] | None = None,
    refits: int = 0,
    temperatures: int = 100,
    seed: int = 0,
    say: Say | None = None,
) -> Diagnosis:
    """Ask every question of a fitted pair.

    Args:
        history: the run's, "bound" with one value a step.
        batch: the training rows. At most 1,000 of them are used, 300 for annealing; fewer where
            the guide draws many latents a row (see `Budget`), since each costs a run of its own.
        held_out: rows that training did not see; q, bounds and predictions are then judged on
            them, and the generalisation gap is measured.
        starts: what is known of the start that was chosen and of those that might have been.
        quantities: test quantities of your own for the predictive check, name -> a function of
            data sets (R, N, P) that gives one number each (R,).
        refits: how often a guide that does not read the data is fitted to data simulated from the
            model, to see whether it is calibrated (at least 20; costs as many short fits).
        temperatures: of the annealing; more make log p(x) tighter and cost in proportion. A guide
            of more than two latents a row takes fewer, in proportion.
        say: called as say(name, done, total) before each diagnostic.
    """
    if 0 < refits < FEWEST_REFITS:
        raise ValueError(f"refits={refits} tell nothing; give at least {FEWEST_REFITS}, or 0.")
    asking = _Asking(pair, history, batch, held_out, starts or Restarts(), temperatures, seed)
    asking.quantities, asking.refits = dict(quantities or {}), refits
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
            remedy = error.remedy if isinstance(error, CannotSayError) else ""
            findings.append(cannot_say(question, NAMES[name], _reason(error), remedy))
        seconds[name] = time.perf_counter() - start
    if say is not None:
        say("", len(steps), len(steps))
    return Diagnosis(tuple(findings), details, seconds)


class _Asking:
    """The questions with their arguments; each takes what earlier ones found."""

    def __init__(
        self,
        pair: ModelGuidePair,
        history: Mapping[str, Sequence[float]],
        batch: tuple[Any, ...],
        held_out: tuple[Any, ...] | None,
        starts: Restarts,
        temperatures: int,
        seed: int,
    ) -> None:
        self.quantities: dict[str, predictive_checks.Quantity] = {}
        self.refits = 0
        self.pair, self.history, self.starts, self.seed = pair, history, starts, seed
        self.sizes = Budget.of(pair, batch)
        self.temperatures = self.sizes.temperatures(temperatures)
        self.train = evenly_spaced_rows(batch, self.sizes.rows)
        self.held_out = None if held_out is None else evenly_spaced_rows(held_out, self.sizes.rows)
        judged = self.train if self.held_out is None else self.held_out
        self.judged, self.few = judged, evenly_spaced_rows(judged, self.sizes.annealing_rows)
        self.joint = self.sizes.joint
        if self.joint:  # rows belong together: those that q was fitted to
            self.train = self.judged = self.few = batch

    def steps(self) -> list[Step]:
        """(name, question, function of what was found before) in the order of the table."""
        m, g, s = self.pair.model, self.pair.guide, self.seed
        x = self.judged
        steps: list[Step] = [
            ("convergence", convergence.QUESTION, lambda _: self._convergence()),
            ("drift", convergence.QUESTION, lambda _: self._drift()),
            ("tightness", bound_tightness.QUESTION, lambda _: self._tightness()),
            ("sandwich", bound_tightness.QUESTION, lambda _: self._sandwich()),
            ("gaps", inference_gaps.QUESTION, self._gaps),
            ("generalization", inference_gaps.QUESTION, lambda _: self._generalization()),
            ("khat", pareto_k.QUESTION, lambda _: pareto_k.pareto_k(m, g, *x, seed=s)),
            ("calibration", calibration.QUESTION, lambda _: calibration.sbc(m, g, *x, seed=s)),
            ("predictive", predictive_checks.QUESTION, lambda _: self._check(prior=False)),
            (
                "two_sample",
                predictive_checks.QUESTION,
                lambda _: predictive_checks.two_sample(m, g, *x, seed=s),
            ),
            (
                "loo",
                predictive_checks.QUESTION,
                lambda _: leave_one_out.loo(m, g, *self.train, seed=s),
            ),
            ("latents", latent_usage.QUESTION, lambda _: latent_usage.latent_use(m, g, *x, seed=s)),
            (
                "mixtures",
                mixture_components.QUESTION,
                lambda _: mixture_components.mixture(self.pair, *x),
            ),
            ("gradient", gradient_noise.QUESTION, self._gradient),
        ]
        more: list[tuple[bool, str, Step]] = [
            (
                self.refits > 0,
                "calibration",
                ("vsbc", calibration.QUESTION, lambda _: self._vsbc()),
            ),
            (
                self.joint,
                "predictive",
                ("prior", predictive_checks.QUESTION, lambda _: self._check(prior=True)),
            ),
            (
                len(self.starts.bounds) > 1
                and any(t.responsibilities for t in self.starts.trajectories),
                "mixtures",
                ("stability", mixture_components.QUESTION, lambda _: self._stability()),
            ),
        ]
        for asked, after, step in more:
            if asked:
                steps.insert([name for name, *_ in steps].index(after) + 1, step)
        return steps

    def _convergence(self) -> convergence.Convergence | convergence.MonotoneConvergence:
        with contextlib.suppress(CannotSayError):  # it falls: there is noise in it
            return convergence.climb(self.history, self.starts.bounds)
        means = [t.bounds for t in self.starts.trajectories if len(t.bounds)]
        return convergence.convergence(self.history, self.starts.bounds, means)

    def _drift(self) -> parameter_drift.Drift:
        s = self.starts
        return parameter_drift.drift(self.pair, s.trajectories, s.bounds, s.chosen)

    def _check(self, prior: bool) -> predictive_checks.Check:
        return predictive_checks.check(
            self.pair.model,
            self.pair.guide,
            *self.judged,
            own=self.quantities,
            prior=prior,
            seed=self.seed,
        )

    def _vsbc(self) -> calibration.Symmetry:
        return calibration.vsbc(
            self.pair.model,
            refitting(self.pair),
            *self.train,
            num_simulations=self.refits,
            seed=self.seed,
        )

    def _stability(self) -> mixture_components.Stability:
        """Of restarts that came close to the best."""
        best = max(self.starts.bounds)
        alike = [
            trail.responsibilities
            for trail, bound in zip(self.starts.trajectories, self.starts.bounds, strict=False)
            if bound > best - convergence.LARGE
        ]
        sites = {name for found in alike for name in found}
        if len(sites) != 1:
            raise CannotSayError("No discrete local site, or several, are summed out of the model.")
        return mixture_components.stability([found[next(iter(sites))] for found in alike])

    def _tightness(self) -> bound_tightness.Tightness:
        return bound_tightness.tightness(
            self.pair.model,
            self.pair.guide,
            *self.few,
            temperatures=self.temperatures,
            seed=self.seed,
        )

    def _sandwich(self) -> bound_tightness.Sandwich:
        rows = self.few if self.joint else evenly_spaced_rows(self.few, self.sizes.simulated_rows)
        return bound_tightness.sandwich(
            self.pair.model,
            self.pair.guide,
            *rows,
            temperatures=self.temperatures,
            seed=self.seed,
        )

    def _gaps(self, details: dict[str, Any]) -> inference_gaps.Gaps:
        found = details.get("tightness")
        evidence: Tensor | None = None if found is None else found.best
        return inference_gaps.gaps(
            self.pair.model, self.pair.guide, *self.few, log_evidence=evidence, seed=self.seed
        )

    def _generalization(self) -> inference_gaps.Generalisation:
        if self.held_out is None:
            raise CannotSayError(
                "No held-out rows were given (fit with validation=, or pass them)."
            )
        return inference_gaps.generalization(
            self.pair.model, self.pair.guide, self.train, self.held_out, seed=self.seed
        )

    def _gradient(self, details: dict[str, Any]) -> gradient_noise.GradientQuality:
        found = details.get("convergence")
        converged = None if found is None else found.converged
        return gradient_noise.gradient_quality(
            self.pair, *self.train, converged=converged, seed=self.seed
        )


def eligible_restarts(
    restarts: Sequence[Mapping[str, Any]], trails: Sequence[Trajectory] = ()
) -> Restarts:
    """From a run's restarts (`run.restarts`), without degenerate or broken ones."""
    sound = [
        i
        for i, r in enumerate(restarts)
        if r.get("chosen")
        or (r.get("degenerate") is None and math.isfinite(r.get("bound") or math.nan))
    ]
    return Restarts(
        tuple(float(restarts[i]["bound"]) for i in sound),
        tuple(trails[i] for i in sound) if trails else (),
        next((k for k, i in enumerate(sound) if restarts[i].get("chosen")), 0),
    )
