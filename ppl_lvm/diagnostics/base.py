"""Declaration of a diagnostic, and its context."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.budget import Budget, evenly_spaced_rows
from ppl_lvm.diagnostics.finding import Finding
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

Quantity = Callable[[Tensor], Tensor]  # test quantity: data sets (R, N, P) -> (R,)


@dataclass(frozen=True)
class Restarts:
    """Restarts of a run that are eligible for selection.

    Attributes:
        bounds: final bounds, nats per row.
        trajectories: one per restart; empty where none was recorded.
        chosen: index of the restart that is the fit.
        initial_bounds: bounds at the initial values; empty where they were not recorded.
        errors: Monte-Carlo errors of `bounds`.
        arrival: what the chosen restart predicted at its end ("converged", "predicted_gain",
            "remedy", "steps"); empty where it predicted nothing.
    """

    bounds: tuple[float, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    chosen: int = 0
    initial_bounds: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    arrival: Mapping[str, Any] = field(default_factory=dict)


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
    ) -> None:
        self.pair, self.history, self.seed = pair, history, seed
        self.restarts = restarts or Restarts()
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
        applies: False leaves the diagnostic out of the table.
    """

    slug: str
    question: str
    title: str
    run: Callable[[Context], Result]
    applies: Callable[[Context], bool] = _always
