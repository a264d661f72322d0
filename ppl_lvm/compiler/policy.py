"""When is a recording compiled? When the steps that are left pay for it."""

import math
from typing import Protocol

from ppl_lvm.compiler.capture.arguments import Arguments
from ppl_lvm.compiler.graph.build import Recording

_COST = (8.0, 0.015)  # seconds that compiling costs: in all, and for each node of the graph
_DISPATCH = 4e-6  # seconds of a captured step that a node costs beyond its arithmetic
# Seconds that a byte of intermediate results costs, which compiled code need not write down: in
# the processor's cache, and beyond it, where the system has to hand out memory for every table.
_BYTE = (5e-11, 3e-10)
_CACHE = 2**25  # bytes


def cost(recording: Recording) -> float:
    """Seconds that compiling a recording takes, roughly."""
    return _COST[0] + _COST[1] * len(recording.module.graph.nodes)


def saving(recording: Recording) -> float:
    """Seconds that a compiled step takes less than a captured one, roughly."""
    largest, written = recording.tables
    dispatch = len(recording.module.graph.nodes) * _DISPATCH
    return dispatch + written * _BYTE[largest > _CACHE]


class CompilePolicy(Protocol):
    """When a recording is to be compiled."""

    def ahead(self, recording: Recording, arguments: Arguments) -> bool:
        """Whether another process should start to compile it now, while steps go on."""

    def now(self, recording: Recording, arguments: Arguments) -> bool:
        """Whether the next step is to be taken compiled."""

    def captured(self, seconds: float) -> None:
        """A captured step has taken so long."""


class BreakEvenPolicy:
    """Compile once captured steps have cost what compiling will: at worst twice the best choice."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def ahead(self, recording: Recording, arguments: Arguments) -> bool:
        return False

    def now(self, recording: Recording, arguments: Arguments) -> bool:
        return self._seconds > cost(recording)

    def captured(self, seconds: float) -> None:
        self._seconds += seconds


class AheadOfTimePolicy:
    """Compile in the background, and switch at a step that is known beforehand.

    What compiling saves is what the nodes of the graph cost beyond their arithmetic and what it
    costs to write their results; it pays if that is, over the whole run, twice what the compiler
    takes. The switch comes when captured
    steps have cost by this measure what the compiler takes, so that it is done by then. No clock
    is read: two runs of one seed switch at the same step, and so does a run that is resumed.

    Attributes:
        step: the number of the step to be taken, from 0; for the caller to set.

    Args:
        num_steps: of the run.
        num_rows, batch_size: of the data and of a batch; a smaller last batch of an epoch is a
            step of another kind, which comes once an epoch.
    """

    def __init__(self, num_steps: int, num_rows: int, batch_size: int) -> None:
        self.step = 0
        self._num_steps, self._num_rows, self._batch_size = num_steps, num_rows, batch_size

    def ahead(self, recording: Recording, arguments: Arguments) -> bool:
        return self.step < self.switch(recording, arguments) < self._num_steps

    def now(self, recording: Recording, arguments: Arguments) -> bool:
        switch = self.switch(recording, arguments)
        return switch <= self.step and switch < self._num_steps

    def captured(self, seconds: float) -> None:
        """Not asked for."""

    def switch(self, recording: Recording, arguments: Arguments) -> int:
        """The step from which steps of this kind are compiled; never if not below `num_steps`."""
        epoch = math.ceil(self._num_rows / self._batch_size)
        ragged = self._num_rows % self._batch_size != 0
        rows = len(arguments.tensors[0]) if arguments.tensors else self._batch_size
        share = 1.0 if not ragged else 1 - 1 / epoch if rows == self._batch_size else 1 / epoch
        saved = share * saving(recording)  # on average
        if self._num_steps * saved < 2 * cost(recording):
            return self._num_steps
        return math.ceil(cost(recording) / saved)
