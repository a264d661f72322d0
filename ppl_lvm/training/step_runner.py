"""Training steps at each level: eager, captured or compiled."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm.compiler import AheadOfTimePolicy, Pauses, PerStepTensor, make_training_step
from ppl_lvm.core import distributed, torch_specs
from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.training.gradient_step import GradientStep
from ppl_lvm.training.line_search_step import LineSearchStep
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.preparation import PreparedPrograms

CALL_SECONDS = 0.2  # of a call, unless `steps_per_call` is given


class StepRunner:
    """Takes steps of prepared programs, one or several per call.

    Attributes:
        gradient: loss and gradient of a batch.
        optimizer, schedule: torch's. The schedule is None or steps after every step
            (ReduceLROnPlateau: after every evaluation).
        policy: decides when steps are compiled.
        training_step: gradient and update at the level of the compiler.
        step_seconds: duration of a step in the last call.
        sign: -1 where the objective's loss is minus the bound, 1 for an upper bound.
    """

    def __init__(
        self, programs: PreparedPrograms, options: TrainingOptions, say: Callable[[str], None]
    ) -> None:
        pair = programs.pair
        self.programs, self.step_seconds = programs, math.inf
        self.sign = 1.0 if getattr(pair.objective, "is_upper_bound", False) else -1.0
        self.gradient = GradientStep(programs, options.clip_norm)
        self.optimizer = torch_specs.optimizer(options.optimizer, self.gradient.leaves)
        self.schedule: Any = torch_specs.schedule(options.schedule, self.optimizer)
        searches = isinstance(self.optimizer, LBFGS)
        self.line_search = LineSearchStep(self.gradient, self.optimizer) if searches else None
        single = distributed.world_size() == 1  # several would wait for the compiler of one
        self.policy = AheadOfTimePolicy(
            options.foreseen_steps if single else 0, programs.num_rows, options.batch_size
        )
        self.training_step = make_training_step(
            self.gradient.loss_and_gradient,
            self.optimizer,
            "eager" if searches else options.engine,
            watched=(pair.model, pair.guide, pair.objective),
            announce=say,
            finite=True,
            capture_first=True,
            plan=self.policy,
            blocks=self.gradient.blocks,
        )

    @property
    def level(self) -> str:
        """The level at which steps are taken: "eager", "captured" or "compiled"."""
        return self.training_step.active_level

    @property
    def affordable_steps(self) -> int:
        """Steps that a call may take, so that progress and interrupts need not wait long.

        It follows the clock, on which the result does not depend: steps in one call are those taken
        one by one, bit for bit.
        """
        compiled = any(step.ready for step in self.training_step.compiled_steps)
        return max(1, int(CALL_SECONDS / self.step_seconds)) if compiled else 1

    @property
    def runs_programs(self) -> bool:
        """True if a step to be captured still has to run the programs."""
        gradient = self.training_step.gradient
        if self.training_step.level == "eager" or gradient.capture_error is not None:
            return False
        return gradient.num_captures == 0

    @property
    def capture_error(self) -> str | None:
        """The reason why steps could not be captured; None where they could."""
        error = self.training_step.gradient.capture_error
        return None if error is None else str(error)

    def disable_capture(self, reason: str) -> None:
        """Take eager steps from now on."""
        self.training_step.gradient.disable_capture(reason)

    def step(self, batch: tuple[Tensor, ...], rows: int, generators: list[Tensor]) -> float:
        """Take one step; returns the bound in nats per row.

        Args:
            batch: this process's part of the batch.
            rows: rows of the whole batch.
            generators: torch's random states, which a line search restores.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; parameters are as before.
        """
        self.gradient.set_batch_size(rows)
        if self.line_search is not None:
            loss = self.line_search(batch, self._per_row(batch), generators)
        else:
            loss, _ = self.training_step(*batch)
        self.advance_schedule()
        return self.sign * float(loss) * self._per_row(batch)

    def run_steps(
        self,
        data: tuple[Tensor, ...],
        rows: Tensor | None,
        kl_weights: Sequence[float],
        pauses: Pauses | None = None,
    ) -> list[float] | None:
        """Take one step for each KL weight in one call; returns the bounds in nats per row.

        Args:
            data: tensors, rows first.
            rows: row numbers (steps, B), or None: every step sees all rows.
            kl_weights: β at each step.
            pauses: of the call.

        Returns:
            None where these steps cannot be taken in one call or one of them is not finite. Then
            nothing has changed.
        """
        beta = self.programs.kl_weight
        schedules = [PerStepTensor(beta, beta.new_tensor(kl_weights))]
        rates = self._rates()
        try:
            losses = self.training_step.run_steps(
                list(data),
                rows,
                len(kl_weights),
                schedules=schedules,
                after_each=None if self.schedule is None else self.advance_schedule,
                pauses=pauses,
            )
        except NonFiniteError:
            self._set_rates(rates)
            return None
        if losses is None:
            return None
        loss, _ = losses
        self.programs.set_kl_weight(kl_weights[-1])
        batch = data if rows is None else tuple(tensor[rows[0]] for tensor in data)
        per_row = self._per_row(batch)
        return [self.sign * value * per_row for value in loss.tolist()]

    def advance_schedule(self) -> None:
        """Take the schedule's step, which follows a training step."""
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()

    def _per_row(self, batch: tuple[Tensor, ...]) -> float:
        # Losses of several processes are weighted and in nats per row already.
        return 1.0 if distributed.world_size() > 1 else self.programs.per_row(len(batch[0]))

    def _rates(self) -> tuple[list[dict[str, Any]], Any]:
        groups = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        return groups, None if self.schedule is None else dict(self.schedule.state_dict())

    def _set_rates(self, rates: tuple[list[dict[str, Any]], Any]) -> None:
        for group, values in zip(self.optimizer.param_groups, rates[0], strict=True):
            group.update(values)
        if self.schedule is not None:
            self.schedule.load_state_dict(rates[1])
