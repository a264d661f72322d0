"""Many compiled steps in one call: the loop over steps, minibatches gathered, inside the graph.

The state (flat parameters and moments) is carried by `scan` from step to step; each step takes its
rows of the data by index and its numbers of the optimiser from a table that the host has filled.
A learning rate is constant within a call: schedules move at its boundaries.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from ppl_lvm.engine.compiled import CompiledStep
from ppl_lvm.engine.refusal import CannotCaptureError


class ManySteps:
    """`num_steps` steps of one compiled step.

    Raises:
        CannotCaptureError: the program keeps state, or returns several losses.
    """

    def __init__(
        self, step: CompiledStep, data: list[Tensor], rows: Tensor, same_random: bool
    ) -> None:
        if step.recording.mutated or step.recording.num_losses != 1:
            raise CannotCaptureError(
                "many steps in one call need a program without state of its own, and one loss"
            )
        self.step, self.num_steps = step, len(rows)
        self._options = {"fallback_random": same_random}
        self._tables = [h.expand(len(rows), -1).clone() for h in step.numbers]
        self._compiled: Callable[..., Any] = torch.compile(self._many, dynamic=False)
        before = torch.get_rng_state()
        try:  # compile now, on copies, so that a failure costs nothing
            self._run([tensor.clone() for tensor in step.state], data, rows)
        except Exception as error:
            raise CannotCaptureError(f"many steps in one call: {type(error).__name__}") from error
        finally:
            torch.set_rng_state(before)

    def __call__(self, data: list[Tensor], rows: Tensor) -> Tensor:
        """Take a step on `data[...][rows[s]]` for each s; losses (num_steps,)."""
        for group, table in zip(self.step.groups, self._tables, strict=True):
            view = table.numpy()
            for place in range(self.num_steps):
                view[place] = group.numbers()
        with torch.no_grad():
            state, losses = self._run(self.step.state, data, rows)
            for held, new in zip(self.step.state, state, strict=True):
                held.copy_(new)
        result: Tensor = losses
        return result

    def _run(self, state: list[Tensor], data: list[Tensor], rows: Tensor) -> Any:
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        rest = [*self.step.recording.sources, *self.step.constants]
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            dynamo.patch(capture_scalar_outputs=True),
            inductor.patch(self._options),
        ):
            warnings.simplefilter("ignore")  # the compiler's remarks on its own internals
            return self._compiled(state, self._tables, rows, data, rest)

    def _many(
        self,
        state: list[Tensor],
        tables: list[Tensor],
        rows: Tensor,
        data: list[Tensor],
        rest: list[Tensor],
    ) -> tuple[list[Tensor], Tensor]:
        def body(carry: list[Tensor], turn: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            *numbers, index = turn
            current = [tensor.clone() for tensor in carry]
            batch = [tensor.index_select(0, index) for tensor in data]
            (loss,) = self.step.trace(*current, *numbers, *batch, *rest)
            return current, loss.clone()

        return scan(body, state, [*tables, rows])
