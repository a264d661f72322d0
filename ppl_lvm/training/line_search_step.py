"""Steps of L-BFGS with a line search."""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.core.rng import restore_generators
from ppl_lvm.training.gradient_step import GradientStep


class LineSearchStep:
    """A step of L-BFGS, which evaluates the loss at several parameters.

    Every evaluation uses the same random numbers.
    """

    def __init__(self, gradient: GradientStep, optimizer: Any) -> None:
        self._gradient, self._optimizer = gradient, optimizer
        self._state_before: dict[str, Tensor] | None = None

    def __call__(
        self, batch: tuple[Tensor, ...], per_row: float, generators: list[Tensor]
    ) -> float:
        """Take a step; returns the objective's loss.

        Args:
            batch: this process's part of the batch.
            per_row: factor from the loss to nats per row.
            generators: torch's random states for every evaluation.

        Raises:
            NonFiniteError: a loss or gradient is not finite. `undo` restores the parameters.
        """
        self._state_before = self._gradient.programs.pair.state()

        def closure() -> float:
            restore_generators(generators)
            self._gradient.clear()
            loss, largest = self._gradient.loss_and_gradient(*batch)
            if not (math.isfinite(loss) and torch.isfinite(largest)):
                raise NonFiniteError("loss or gradient is not finite")
            return float(loss) * per_row

        loss: Any = self._optimizer.step(closure)
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss) / per_row

    def undo(self) -> None:
        """Restore the parameters from before the last step."""
        if self._state_before is not None:
            self._gradient.programs.pair.load_state(self._state_before)
