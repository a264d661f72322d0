"""Take several compiled steps per call, gathering mini-batches by index.

The loop over the steps is in C++ (`native_loop`) where the step is one compiled function on a CPU,
otherwise here. One compiled function serves any number of steps, and a run in such calls takes the
steps that it would take one by one, bit for bit. (Inductor's `scan` would copy the state in every
iteration.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.compiler.backend.executable_step import ExecutableStep, Pauses, PerStepTensor
from ppl_lvm.core.rng import RngState


def take_steps(
    step: ExecutableStep,
    data: list[Tensor],
    rows: Tensor | None,
    count: int,
    schedules: Sequence[PerStepTensor] = (),
    after_each: Callable[[], None] | None = None,
    pauses: Pauses | None = None,
) -> Any:
    """Take `count` steps on batches of `data` by `rows` (count, B), or on all of it.

    Args:
        schedules: tensors that the program reads, with their value at each step.
        after_each: called once the optimizer's scalars of a step have been read.
        pauses: between steps.

    Returns:
        The losses as the program returns them, each tensor (count, …).
    """
    with torch.no_grad():
        stacked = step.take_several(data, rows, count, schedules, after_each, pauses)
    if stacked is not None:
        return step.recording.losses(stacked)
    places = {} if rows is None else {d.device: rows.to(d.device).unbind() for d in data}
    losses = []
    with torch.no_grad():
        for place in range(count):
            for schedule in schedules:
                schedule.tensor.copy_(schedule.values[place])
            batch = [d.index_select(0, places[d.device][place]) for d in data] if places else data
            losses.append(step.take(batch, after_each))
            if pauses is not None and place + 1 in pauses.after:
                pauses.function(place + 1)
        stacked = [torch.stack(values) for values in zip(*losses, strict=True)]
    return step.recording.losses(stacked)


class StepSnapshot:
    """Snapshot of all tensors that a call of `take_steps` changes, and of the random states."""

    def __init__(self, step: ExecutableStep, schedules: Sequence[PerStepTensor]) -> None:
        self._step, self._count = step, step.count
        changed = [*step.mutated, *(schedule.tensor for schedule in schedules)]
        self._tensors = [(tensor, tensor.clone()) for tensor in changed]
        self._random = RngState.capture()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the steps since."""
        self._random.restore()
        for tensor, value in self._tensors:
            tensor.copy_(value)
        self._step.undo_count(self._step.count - self._count)
