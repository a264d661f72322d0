"""Policies that decide when compiling pays off."""

import math
from dataclasses import dataclass
from typing import Protocol

from ppl_lvm.compiler.capture.arguments import Arguments
from ppl_lvm.compiler.graph.ir import Recording


@dataclass(frozen=True)
class CostModel:
    """Estimated seconds of compiling a recording, and of a step that is not compiled.

    Attributes:
        compile_seconds: of compiling, per graph.
        compile_seconds_per_node: of compiling, per node of the graph.
        dispatch_seconds: of a node of a captured step, beyond its arithmetic.
        byte_seconds: per byte of intermediate results, which compiled code need not store, where
            the largest table fits the cache, and where the system has to hand out its memory.
        cache_bytes: size of the cache.
    """

    compile_seconds: float = 8.0
    compile_seconds_per_node: float = 0.015
    dispatch_seconds: float = 4e-6
    byte_seconds: tuple[float, float] = (5e-11, 3e-10)
    cache_bytes: int = 2**25

    def compiling(self, recording: Recording) -> float:
        """Seconds that compiling a recording takes, roughly."""
        nodes = len(recording.module.graph.nodes)
        return self.compile_seconds + self.compile_seconds_per_node * nodes

    def saving(self, recording: Recording) -> float:
        """Seconds by which a compiled step is faster than a captured one, roughly."""
        largest, written = recording.tables
        dispatch = len(recording.module.graph.nodes) * self.dispatch_seconds
        return dispatch + written * self.byte_seconds[largest > self.cache_bytes]


COSTS = CostModel()


class CompilePolicy(Protocol):
    """The decision when a recording is compiled.

    Attributes:
        reads_clock: whether it depends on measured times, so that a step may also be replaced as
            soon as it has been compiled in the background.
    """

    reads_clock: bool

    def compiles_ahead(self, recording: Recording, arguments: Arguments) -> bool:
        """True if another process should start to compile it now."""

    def compiles_now(self, recording: Recording, arguments: Arguments) -> bool:
        """True if the next step is to be compiled."""

    def count_seconds(self, seconds: float) -> None:
        """Count the seconds of a captured step."""


class BreakEvenPolicy:
    """Compile once captured steps have cost as much as compiling: at most twice the optimum."""

    reads_clock = True

    def __init__(self, costs: CostModel | None = None) -> None:
        self._costs = costs or COSTS
        self._seconds = 0.0

    def compiles_ahead(self, recording: Recording, arguments: Arguments) -> bool:
        return False

    def compiles_now(self, recording: Recording, arguments: Arguments) -> bool:
        return self._seconds > self._costs.compiling(recording)

    def count_seconds(self, seconds: float) -> None:
        self._seconds += seconds


class AheadOfTimePolicy:
    """Compile in the background, and switch at a step that is known beforehand.

    A compiled step saves the cost of the graph's nodes beyond their arithmetic and the cost of
    storing their results. Compiling pays if it saves, over the whole run, twice its cost. The
    switch comes when captured steps have cost by this measure as much as compiling, so that the
    compiler is ready by then. No clock is read: two runs of one seed switch at the same step, and
    so does a resumed run.

    Attributes:
        step: index of the next step, from 0; the caller sets it.

    Args:
        num_steps: of the run.
        num_rows, batch_size: of the data and of a batch. A smaller last batch of an epoch is a
            step of another kind, once an epoch.
        costs: estimates, `COSTS` by default.
    """

    reads_clock = False

    def __init__(
        self, num_steps: int, num_rows: int, batch_size: int, costs: CostModel | None = None
    ) -> None:
        self.step = 0
        self._num_steps, self._num_rows, self._batch_size = num_steps, num_rows, batch_size
        self._costs = costs or COSTS

    def compiles_ahead(self, recording: Recording, arguments: Arguments) -> bool:
        return self.step < self.switch(recording, arguments) < self._num_steps

    def compiles_now(self, recording: Recording, arguments: Arguments) -> bool:
        switch = self.switch(recording, arguments)
        return switch <= self.step and switch < self._num_steps

    def count_seconds(self, seconds: float) -> None:
        """Do nothing: no clock is read."""

    def switch(self, recording: Recording, arguments: Arguments) -> int:
        """The step from which steps of this kind are compiled; never if not below `num_steps`."""
        epoch = math.ceil(self._num_rows / self._batch_size)
        ragged = self._num_rows % self._batch_size != 0
        rows = len(arguments.tensors[0]) if arguments.tensors else self._batch_size
        share = 1.0 if not ragged else 1 - 1 / epoch if rows == self._batch_size else 1 / epoch
        saved = share * self._costs.saving(recording)  # on average
        compiling = self._costs.compiling(recording)
        if self._num_steps * saved < 2 * compiling:
            return self._num_steps
        return math.ceil(compiling / saved)
