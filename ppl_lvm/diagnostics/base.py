"""Declaration of a diagnostic, and its context."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.budget import Budget, evenly_spaced_rows
from ppl_lvm.diagnostics.finding import Finding
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

Quantity = Callable[[Tensor], Tensor]  # test quantity: data sets (R, N, P) -> (R,)
TOTAL = 2.0  # nats of all rows together: a likelihood ratio of 7
USES = ("density", "codes", "uncertainty", "samples", "groups")
PER_ROW = 0.1  # nats, where the number of rows is unknown
Z = 3.0  # Monte-Carlo errors within which two bounds are not told apart


@dataclass(frozen=True)
class Restarts:
    """Restarts of a run that are eligible for selection.

    Attributes:
        bounds: final bounds, nats per row.
        trajectories: one per restart; empty where none was recorded.
        chosen: index of the restart that is the fit.
        initial_bounds: bounds at the initial values; empty where they were not recorded.
        errors: Monte-Carlo errors of `bounds`.
        rows: rows that the bounds are of; None if unknown.
        resolution: predicted gain of more steps, the largest over the restarts: bounds that are
            closer are not told apart.
        arrival: what the chosen restart predicted at its end ("converged", "predicted_gain",
            "remedy", "steps"); empty where it predicted nothing.
    """

    bounds: tuple[float, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    chosen: int = 0
    initial_bounds: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    rows: int | None = None
    resolution: float = 0.0
    arrival: Mapping[str, Any] = field(default_factory=dict)

    @property
    def near(self) -> float:
        """Distance to the best bound, nats per row, within which a bound equals it."""
        return self.resolution + (PER_ROW if self.rows is None else TOTAL / self.rows)

    @property
    def reached_best(self) -> list[bool]:
        """True where a restart ends at the best bound, within `near` and three of its errors."""
        best = max(self.bounds, default=0.0)
        known = [e if math.isfinite(e) else 0.0 for e in self.errors or [0.0] * len(self.bounds)]
        of_best = known[self.bounds.index(best)] if self.bounds else 0.0
        return [
            b >= best - self.near - Z * math.hypot(e, of_best)
            for b, e in zip(self.bounds, known, strict=True)
        ]


def as_restarts(bounds: Sequence[float] | Restarts) -> Restarts:
    """Restarts of which only the bounds are known."""
    return bounds if isinstance(bounds, Restarts) else Restarts(tuple(bounds))


class Context:
    """A fitted pair with the rows and settings that every diagnostic reads.

    Where rows share latents (`budget.joint`) all of them belong together: `train`, `rows` and
    `annealing_rows` are then the batch that q was fitted to.

    Attributes:
        train: rows of the training batch, at most `budget.rows`.
        rows: rows that q, bounds and predictions are evaluated on: held out if possible.
        annealing_rows: those of `rows` whose log p(x) is annealed.
        held_out: rows that training did not see, or None.
        temperatures: number of temperatures within the budget.
        options: of the fit, as its record has them; empty if they are unknown.
        columns: names of the columns of the first tensor; None if they have none.
        results: slug -> result of the diagnostics that ran before.
    """

    def __init__(
        self,
        pair: ModelGuidePair,
        history: Mapping[str, Sequence[float]],
        batch: Batch,
        *,
        held_out: Batch | None = None,
        restarts: Restarts | None = None,
        quantities: Mapping[str, Quantity] | None = None,
        refits: int = 0,
        temperatures: int = 100,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.pair, self.history, self.seed = pair, history, seed
        self.options, self.columns = dict(options or {}), columns
        self.restarts = restarts or Restarts()
        if self.restarts.rows is None:
            self.restarts = replace(self.restarts, rows=len(batch[0]))
        self.quantities, self.refits = dict(quantities or {}), refits
        self.budget = Budget.of(pair, batch)
        self.temperatures = self.budget.temperatures(temperatures)
        self.train = evenly_spaced_rows(batch, self.budget.rows)
        self.held_out = None if held_out is None else evenly_spaced_rows(held_out, self.budget.rows)
        self.rows = self.train if self.held_out is None else self.held_out
        self.annealing_rows = evenly_spaced_rows(self.rows, self.budget.annealing_rows)
        if self.budget.joint:
            self.train = self.rows = self.annealing_rows = batch
        self.results: dict[str, Any] = {}

    @property
    def model(self) -> Program:
        return self.pair.model

    @property
    def tempered(self) -> bool:
        """True if the KL term had a weight above 1."""
        return (self.options.get("kl_weight") or 1.0) > 1

    @property
    def particles_of_bound(self) -> int:
        """K of a bound of K particles that the fit maximized (IWAE, Rényi, …); 1: the ELBO."""
        objective = self.pair.objective
        target = getattr(objective, "target", "Rényi" if hasattr(objective, "alpha") else "ELBO")
        return 1 if target.endswith("ELBO") else int(getattr(objective, "num_particles", 1))

    @property
    def guide(self) -> Program:
        return self.pair.guide


class Result(Protocol):
    """The result of a diagnostic."""

    def findings(self) -> list[Finding]: ...


def _always(context: Context) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One diagnostic.

    Attributes:
        slug: key of its result in `Diagnosis.details`, and of its figure in the report.
        question: heading that its rows stand under.
        title: name of its row where it has no result.
        run: computes the result; raises `CannotSayError` where the pair has none.
        spoils: what a fit that fails it should not be used for, of `USES`.
        applies: False leaves the diagnostic out of the table.
    """

    slug: str
    question: str
    title: str
    run: Callable[[Context], Result]
    spoils: tuple[str, ...] = ()
    applies: Callable[[Context], bool] = _always
