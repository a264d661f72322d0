"""Many compiled steps in one call: the loop over steps, minibatches gathered, inside the graph.

The state (flat parameters and moments, and what the program itself changes) is carried by `scan`
from step to step. Each step takes its rows of the data by index, its numbers of the optimiser from
a table that the host has filled, and its value of every tensor that takes turns (an annealed
weight).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from ppl_lvm.engine import outside
from ppl_lvm.engine.compiled import CompiledStep
from ppl_lvm.engine.refusal import CannotCaptureError


@dataclass
class Turn:
    """A tensor that the program reads, and its `values` (steps, …) at the steps of a call."""

    tensor: Tensor
    values: Tensor


class ManySteps:
    """`count` steps of one compiled step, on batches of `data` by `rows` or on all of it.

    Raises:
        CannotCaptureError: the loop cannot be compiled.
    """

    def __init__(
        self,
        step: CompiledStep,
        data: list[Tensor],
        rows: Tensor | None,
        count: int,
        turns: Sequence[Turn],
        same_random: bool,
    ) -> None:
        self.step, self.count = step, count
        sources = step.recording.sources
        where = {id(tensor): place for place, tensor in enumerate(sources)}
        self._turns = [where.get(id(turn.tensor)) for turn in turns]
        self._mutated = [p for p in step.recording.mutated if p not in self._turns]
        self._options = {"fallback_random": same_random}
        self._tables = [h.expand(count, -1).clone() for h in step.numbers]
        self._compiled: Callable[..., Any] = torch.compile(self._steps, dynamic=False)
        before = outside.random_states()
        try:  # compile now, on copies, so that a failure costs nothing
            self._run([tensor.clone() for tensor in self._carried()], data, rows, turns)
        except Exception as error:
            raise CannotCaptureError(f"many steps in one call: {type(error).__name__}") from error
        finally:
            outside.restore_random(before)

    def __call__(
        self,
        data: list[Tensor],
        rows: Tensor | None,
        turns: Sequence[Turn] = (),
        between: Callable[[], None] | None = None,
    ) -> Any:
        """Take the steps; what the program returns, each tensor (count, …)."""
        views = [table.numpy() for table in self._tables]
        for place in range(self.count):
            for group, view in zip(self.step.groups, views, strict=True):
                view[place] = group.numbers()
            if between is not None:
                between()
        with torch.no_grad():
            carried = self._carried()
            state, losses = self._run(carried, data, rows, turns)
            for held, new in zip(carried, state, strict=True):
                held.copy_(new)
        return self.step.recording.losses(losses)

    def state(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Random states and copies of all that a call changes."""
        return outside.random_states(), [tensor.clone() for tensor in self._carried()]

    def take_back(self, state: tuple[dict[str, Any], list[Tensor]]) -> None:
        """Undo the last call: go back to what `state` returned before it."""
        random, tensors = state
        outside.restore_random(random)
        for held, value in zip(self._carried(), tensors, strict=True):
            held.copy_(value)
        for group in self.step.groups:
            group.take_back(self.count)

    def _carried(self) -> list[Tensor]:
        return [*self.step.state, *(self.step.recording.sources[p] for p in self._mutated)]

    def _run(
        self, state: list[Tensor], data: list[Tensor], rows: Tensor | None, turns: Sequence[Turn]
    ) -> Any:
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        values = [t.values for t, p in zip(turns, self._turns, strict=True) if p is not None]
        rest = [*self.step.recording.sources, *self.step.constants]
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            dynamo.patch(capture_scalar_outputs=True),
            inductor.patch(self._options),
        ):
            warnings.simplefilter("ignore")  # the compiler's remarks on its own internals
            return self._compiled(state, self._tables, values, rows, data, rest)

    def _steps(
        self,
        state: list[Tensor],
        tables: list[Tensor],
        values: list[Tensor],
        rows: Tensor | None,
        data: list[Tensor],
        rest: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        mine = len(self.step.state)
        places = [place for place in self._turns if place is not None]

        def body(carry: list[Tensor], turn: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            numbers, now = turn[: len(tables)], turn[len(tables) : len(tables) + len(values)]
            current = [tensor.clone() for tensor in carry]
            given = list(rest)
            for place, value in zip(places, now, strict=True):
                given[place] = value
            for place, kept in zip(self._mutated, current[mine:], strict=True):
                given[place] = kept
            batch = data if rows is None else [d.index_select(0, turn[-1]) for d in data]
            losses = self.step.trace(*current[:mine], *numbers, *batch, *given)
            return current, [loss.clone() for loss in losses]

        return scan(body, state, [*tables, *values, *([] if rows is None else [rows])])
