"""Batch EM: E-step over all rows, M-step, convergence test.

If the likelihood falls, either a step of the model is wrong, or the restart is so close to a
singularity of the likelihood that rounding decides. The model tells which (`degenerate`), and a
degenerate restart ends.

Convergence is judged as in Böhning et al.: near the optimum, gains shrink by a factor a < 1, so
that a log-likelihood of gain · a / (1 - a) remains to be gained.

Reference:
    Böhning, Dietz, Schaub, Schlattmann, Lindsay (1994). The distribution of the likelihood ratio
    for mixtures of densities from the one-parameter exponential family. Section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.data import Data
from ppl_lvm.data.selection import initialization_rows
from ppl_lvm.training.em.statistics import READ_ROWS, State, Sums
from ppl_lvm.training.extrapolation import aitken_remaining_gain

# Largest fall of the log-likelihood that rounding explains, nats per row, relative.
ROUNDING = 1e-10


class NotMonotoneError(ArithmeticError):
    """An iteration of EM lowered the log-likelihood: one of the two steps is wrong."""


@dataclass
class EM:
    """Batch EM of R restarts together.

    Attributes:
        state: θ; the leading dimension of every tensor is R.
        held_out: further rows whose log-likelihood is recorded.
        bounds: log-likelihood of every iteration, nats per row, one list a restart; the last
            one is that of `state`.
        held_out_bounds: the same for `held_out`.
        converged: one value a restart.
        degenerate: restarts that ended because they are degenerate and rounding decides.
    """

    model: Any
    data: Data
    state: State
    batch_size: int = READ_ROWS
    tolerance: float = 1e-6
    held_out: Data | None = None
    bounds: list[list[float]] = field(default_factory=list)
    held_out_bounds: list[list[float]] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)
    degenerate: list[int] = field(default_factory=list)

    def run(self, max_iterations: int, after_iteration: Callable[[], None] = lambda: None) -> None:
        """Iterate each restart until it has converged, `max_iterations` times at most.

        `after_iteration` is called after every iteration. After `load`, the iterations continue.

        Raises:
            NotMonotoneError: the log-likelihood fell by more than rounding.
            ValueError: the log-likelihood is not finite.
        """
        R = len(next(iter(self.state.values())))
        if not self.bounds:
            self.bounds, self.held_out_bounds = [[] for _ in range(R)], [[] for _ in range(R)]
            self.converged = [False] * R
        sums = Sums(self.model, self.data, self.batch_size)
        while True:
            active = torch.tensor([r for r in range(R) if not self._done(r)])
            if not len(active) or len(self.bounds[int(active[0])]) >= max_iterations:
                return
            state = {name: t[active] for name, t in self.state.items()}
            statistics, log_likelihood = sums.over(state)
            per_row = (log_likelihood / self.data.total_weight).tolist()
            for r, bound in zip(active.tolist(), per_row, strict=True):
                self._judge(r, bound, {name: t[r] for name, t in self.state.items()})
            self._record_held_out(active, state)
            last = len(self.bounds[int(active[0])]) == max_iterations
            moving = torch.tensor([not (last or self._done(r)) for r in active.tolist()])
            if moving.any():
                state = {name: t[moving] for name, t in state.items()}
                statistics = {name: t[moving] for name, t in statistics.items()}
                for name, t in torch.vmap(self.model.m_step)(state, statistics).items():
                    self.state[name][active[moving]] = t
            after_iteration()

    def _record_held_out(self, active: Tensor, state: State) -> None:
        if self.held_out is None:
            return
        _, log_likelihood = Sums(self.model, self.held_out, self.batch_size).over(state)
        per_row = (log_likelihood / self.held_out.total_weight).tolist()
        for r, bound in zip(active.tolist(), per_row, strict=True):
            self.held_out_bounds[r].append(bound)

    def _done(self, r: int) -> bool:
        return self.converged[r] or r in self.degenerate

    def _judge(self, r: int, bound: float, state: State) -> None:
        """Record the bound of restart `r` at θ = `state`, and judge its convergence."""
        bounds = self.bounds[r]
        at = f"iteration {len(bounds) + 1}" + (f" of restart {r}" if len(self.bounds) > 1 else "")
        if not abs(bound) < float("inf"):
            raise ValueError(
                f"The log-likelihood is {bound} at {at}. Look for non-finite values and outliers "
                "in the data, or raise the model's floor."
            )
        bounds.append(bound)
        if len(bounds) < 2:
            return
        gain, slack = bound - bounds[-2], ROUNDING * (1 + abs(bound))
        if gain < -slack:
            if self._degenerate(state):
                self.degenerate.append(r)
                return
            raise NotMonotoneError(
                f"The log-likelihood fell by {-gain:.3e} nats per row at {at}, from "
                f"{bounds[-2]:.10g} to {bound:.10g}. EM cannot lower it. Check that m_step of "
                f"{type(self.model).__name__} maximizes the expected log-likelihood of the "
                "statistics, and that e_step returns their sums over rows at its argument θ."
            )
        self.converged[r] = aitken_remaining_gain(bounds) <= self.tolerance

    def _degenerate(self, state: State) -> bool:
        if not hasattr(self.model, "degenerate"):
            return False
        self.model.set_em_state(state)
        return self.model.degenerate(*initialization_rows(self.data)) is not None

    # Checkpoint

    def tensors(self) -> dict[str, Tensor]:
        """θ by name."""
        return {f"state/{name}": t for name, t in self.state.items()}

    def progress(self) -> dict[str, Any]:
        """Bounds and convergence, as plain data."""
        names = ("bounds", "held_out_bounds", "converged", "degenerate")
        return {name: getattr(self, name) for name in names}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from `tensors` and `progress`."""
        self.state = {name: tensors[f"state/{name}"].to(t) for name, t in self.state.items()}
        for name, value in progress.items():
            setattr(self, name, value)
