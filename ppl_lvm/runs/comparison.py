"""Comparison of runs by log densities of the same rows.

The log density l_n of row n, in nats, is

    point estimates   log p(x_n; θ̂): exact where the model has a closed form or every latent is
                      summed out, else the importance-weighted bound log 1/K Σ_k w_nk
    global latents    log 1/S Σ_s p(x_n | θ_s), θ_s ~ q(θ), local latents marginalized

so that both kinds of model are comparable. Differences are paired row by row,

    Δ = mean_n (l_na − l_nb),    error = √(sd_n(l_na − l_nb)² / N + Monte-Carlo errors²).

All rows have the same S draws of the global latents, so the Monte-Carlo error of their mean is that
over draws, sd_s(mean_n w_sn / w̄_n) / √S with w_sn = p(x_n | θ_s). Draws of local latents are
independent between rows. Draws of different runs are independent. Where k̂ > 0.7 for most rows of a
run its value is too low by an unknown amount: it has no error, and the verdict on a lower value is
"unknown".

Rows that are hard for one model are hard for the others, so the error of a difference is much
smaller than the error of either value. The likelihoods must be of the same kind (`comparability`).
Leave-one-out accuracy on the training rows is added for runs with global latents whose k̂ allow it.

    comparison = compare([run_a, run_b])
    comparison.difference(0, 1)          # nats per row, and its standard error

References:
    Vehtari, Gelman, Gabry (2017). Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC. https://arxiv.org/abs/1507.04544 (Section 5.2: paired errors)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from rich.console import Group
from rich.text import Text

from ppl_lvm.core.console import Records, plain_text
from ppl_lvm.core.html_tables import html_paragraph, html_table
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.storage import jsonable
from ppl_lvm.core.types import Floats, Say
from ppl_lvm.core.validate import DataSource, Seed
from ppl_lvm.data import Data, load_data
from ppl_lvm.diagnostics.finding import format_with_error
from ppl_lvm.runs.comparability import (
    check_width,
    common_rows,
    distinct_names,
    require_same_likelihood,
)
from ppl_lvm.runs.rows import few_rows
from ppl_lvm.runs.run import Run
from ppl_lvm.runs.scores import UNRELIABLE, Score, mean_error, score

SIGNIFICANCE_Z = 2.5  # standard errors
FEWEST_PARTICLES = 10
KIND_ROWS = 1000  # of rows on disk, by which likelihoods are told apart


@dataclass(frozen=True, repr=False)
class Comparison:
    """Scores of several runs on the same rows.

    Attributes:
        scores: one per run, in the order of the runs.
        rows: a description of the rows.
    """

    scores: tuple[Score, ...]
    rows: str

    @property
    def order(self) -> list[int]:
        """Indices of the runs, best first."""
        return sorted(range(len(self.scores)), key=lambda i: -self.scores[i].value)

    def difference(self, a: int, b: int) -> tuple[float, float]:
        """Run a minus run b, nats per row, and its paired error; NaN if a value is unreliable."""
        reliable = a == b or (self.scores[a].reliable and self.scores[b].reliable)
        return self._difference(a, b) if reliable else (self._difference(a, b)[0], math.nan)

    def _difference(self, a: int, b: int) -> tuple[float, float]:
        d = self.scores[a].per_row - self.scores[b].per_row
        noise = [] if a == b else [self.scores[i].monte_carlo_error for i in (a, b)]
        return self._mean(d), math.hypot(mean_error(d, self.weights), *noise)

    @property
    def weights(self) -> Floats | None:
        """Weights of the rows (N,); None if all are equal."""
        return self.scores[0].weights

    def _mean(self, x: Floats) -> float:
        return float(np.average(x, weights=self.weights))

    def loo_difference(self, a: int, b: int) -> tuple[float, float] | None:
        """`difference` of leave-one-out accuracy; None unless both have it on as many rows."""
        x, y = self.scores[a].loo, self.scores[b].loo
        if x is None or y is None or len(x.elpd_i) != len(y.elpd_i):
            return None
        d = x.elpd_i - y.elpd_i
        return float(d.mean()), mean_error(d)

    def verdict(self, i: int) -> str:
        """Run i against the best run: "best", "as good", "worse" or "unknown".

        Unreliable values are too low, so a run is worse than an unreliable best run if it is worse
        than its value.
        """
        best = self.order[0]
        if i == best:
            return "best"
        if not self.scores[i].reliable:
            return "unknown"
        difference, error = self._difference(i, best)
        if difference < -SIGNIFICANCE_Z * error:
            return "worse"
        return "as good" if self.scores[best].reliable else "unknown"

    @property
    def note(self) -> str:
        """A description of the rows and of the reliability of the values."""
        notes = [f"{self.rows}; nats per row, differences paired row by row."]
        bounds = [s for s in self.scores if s.kind == "lower bound"]
        if bounds:
            described = ", ".join(
                f"{s.name} (k̂ > 0.7 for {s.share_bad:.0%} of rows)" for s in bounds
            )
            notes.append(f"Lower bounds: {described}.")
        predictive = [s for s in self.scores if s.kind == "predictive" and s.share_bad > 0]
        notes += [f"k̂ > 0.7 for {s.share_bad:.0%} of rows of {s.name}." for s in predictive]
        if any(s.share_bad > UNRELIABLE for s in self.scores):
            notes.append("Where k̂ is high a run may be better than its value says.")
        if unreliable := [s.name for s in self.scores if not s.reliable]:
            notes.append(f"Most k̂ are high, so there is no error: {', '.join(unreliable)}.")
        if omitted := [f"{s.name} ({s.no_loo})" for s in self.scores if s.no_loo]:
            notes.append(f"No leave-one-out: {', '.join(omitted)}.")
        return " ".join(notes)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary per run, best first."""
        best = self.order[0]
        rows = []
        for i, s in ((i, self.scores[i]) for i in self.order):
            difference, error = self.difference(i, best)
            loo_difference = self.loo_difference(i, best)
            row = {
                "run": s.name,
                "value": s.value,
                "error": s.standard_error,
                "kind": s.kind,
                "monte_carlo_error": s.monte_carlo_error,
                "share_bad": s.share_bad,
                "difference": difference,
                "difference_error": error,
                "verdict": self.verdict(i),
                "loo": None if s.loo is None else s.loo.elpd / len(s.loo.elpd_i),
                "loo_error": None if s.loo is None else s.loo.se / len(s.loo.elpd_i),
                "no_loo": s.no_loo,
                "loo_difference": None if loo_difference is None else loo_difference[0],
                "loo_difference_error": None if loo_difference is None else loo_difference[1],
                "parameters": s.parameters,
                "steps": s.steps,
                "seconds": s.seconds,
            }
            rows.append(jsonable(row))
        return rows

    def __rich__(self) -> Group:
        return _table(self)

    def __str__(self) -> str:
        return plain_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, rows = _cells(self)
        return html_table(head, rows, "Comparison of runs") + html_paragraph(self.note)


@public_call
def compare(
    runs: Sequence[Run],
    x: DataSource | None = None,
    *,
    names: Sequence[str] | None = None,
    num_particles: Annotated[int, Ge(FEWEST_PARTICLES)] = 1000,
    seed: Seed = 0,
    say: Say | None = None,
) -> Comparison:
    """Compare runs on rows that none of them has seen.

    Args:
        runs: at least two.
        x: the rows (default: the rows that every run held out, which must be the same). Data with
            weights have weighted means, and a row counts as w_n rows in their errors.
        names: of the runs (default: their directories or models).
        num_particles: K of the lower bound, and draws of global latents (a fifth of it where each
            needs draws of local ones).
        seed: of the draws; the caller's random state is preserved.
        say: called as say(name, done, total) before each run.

    Raises:
        ValueError: fewer than two runs or rows, or runs of other data, columns or split.
        NotComparableError: the likelihoods of two runs are of different quantities.
    """
    names = distinct_names(runs, names)
    held_out = common_rows(runs, names) if x is None else x
    rows = [run.rows(held_out) for run in runs]
    batches = [few_rows(run.pair, data, KIND_ROWS) for run, data in zip(runs, rows, strict=True)]
    if len(rows[0]) < 2:
        raise ValueError(
            "compare needs at least two rows: the error of a difference is its variation over "
            "rows. Hold out more, or pass rows as x."
        )
    for name, run, batch in zip(names, runs, batches, strict=True):
        check_width(name, run, batch)
    require_same_likelihood(runs, names, batches)
    scores = []
    # Equal draws would make the Monte-Carlo errors of two runs dependent.
    seeds = torch.randint(2**31, (len(runs),), generator=torch.Generator().manual_seed(seed))
    for i, (name, run) in enumerate(zip(names, runs, strict=True)):
        if say is not None:
            say(name, i, len(runs))
        scores.append(score(name, run, rows[i], num_particles, int(seeds[i]), seed))
    if say is not None:
        say("", len(runs), len(runs))
    return Comparison(tuple(scores), f"{len(rows[0])} rows, {_describe_rows(runs, x)}")


def _describe_rows(runs: Sequence[Run], x: Any) -> str:
    """The origin of the rows, with a warning where runs were fitted to them."""
    if x is None:
        return "held out by all"
    data = x if isinstance(x, Data) else load_data(x, missing="keep")
    if data.fingerprint() in {run.record["data"]["fingerprint"] for run in runs}:
        return "passed, with rows that were fitted to, which favors larger models"
    return "passed"


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table, best run first."""
    has_loo = any(s.loo is not None for s in comparison.scores)
    heads = [
        "run",
        "",
        "log p(x)",
        "− best",
        *(["LOO"] if has_loo else []),
        "parameters",
        "seconds",
    ]
    best, rows = comparison.order[0], []
    for i in comparison.order:
        s = comparison.scores[i]
        difference, error = comparison.difference(i, best)
        N = 1 if s.loo is None else len(s.loo.elpd_i)
        loo = "–" if s.loo is None else format_with_error(s.loo.elpd / N, s.loo.se / N)
        rows.append(
            [
                s.name,
                comparison.verdict(i),
                format_with_error(s.value, s.standard_error),
                "" if i == best else format_with_error(difference, error),
                *([loo] if has_loo else []),
                f"{s.parameters}",
                f"{s.seconds:.1f}",
            ]
        )
    return heads, rows


def _table(comparison: Comparison) -> Group:
    """Title, one row per run (best first), and the note."""
    heads, rows = _cells(comparison)
    table = Records(heads, rows, right=heads[2:])
    return Group(Text("Comparison of runs", style="bold"), table, Text(comparison.note))
