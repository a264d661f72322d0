"""Many compiled steps in one call: minibatches are gathered by index, and nothing else is asked.

A compiled step calls its kernels from C++, so that a loop here costs a few microseconds a step,
less than the inductor's own loop (`scan`), which copies the state in every turn. One compiled
function serves any number of steps, and a run in calls takes the steps that it would take one by
one, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.capture import state_snapshot as outside
from ppl_lvm.compiler.passes.row_tiling import TiledStep


@dataclass
class PerStepTensor:
    """A tensor that the program reads, and its `values` (steps, …) at the steps of a call."""

    tensor: Tensor
    values: Tensor


def take_steps(
    step: CompiledStep | TiledStep,
    data: list[Tensor],
    rows: Tensor | None,
    count: int,
    turns: Sequence[PerStepTensor] = (),
    after_each: Callable[[], None] | None = None,
) -> Any:
    """`count` steps on batches of `data` by `rows` (count, B), or on all of it.

    Args:
        turns: tensors that the program reads, with their value at each step.
        after_each: called after each step's numbers of the optimiser have been taken.

    Returns:
        What the program returns, each tensor (count, …).
    """
    places = {} if rows is None else {d.device: rows.to(d.device).unbind() for d in data}
    losses = []
    with torch.no_grad():
        for place in range(count):
            for turn in turns:
                turn.tensor.copy_(turn.values[place])
            batch = [d.index_select(0, places[d.device][place]) for d in data] if places else data
            losses.append(step.take(batch, after_each))
        stacked = [torch.stack(values) for values in zip(*losses, strict=True)]
    return step.recording.losses(stacked)


class StepSnapshot:
    """All that a call changes, to go back to."""

    def __init__(self, step: CompiledStep | TiledStep, turns: Sequence[PerStepTensor]) -> None:
        self._step = step
        changed = [step.recording.sources[place] for place in step.recording.mutated]
        changed += [*step.state, *(turn.tensor for turn in turns)]
        self._tensors = [(tensor, tensor.clone()) for tensor in changed]
        self._random = outside.random_states()

    @torch.no_grad()
    def restore(self, count: int) -> None:
        """Undo a call of so many steps."""
        outside.restore_random(self._random)
        for tensor, value in self._tensors:
            tensor.copy_(value)
        for group in self._step.groups:
            group.undo_count(count)
