"""Base of compiled steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.optim.flat import ParameterGroup


@dataclass
class PerStepTensor:
    """A tensor that the program reads, and its `values` (steps, …) at the steps of a call."""

    tensor: Tensor
    values: Tensor


@dataclass
class Pauses:
    """Calls of a function between steps of a call, with the number of steps taken by then."""

    after: Sequence[int]
    function: Callable[[int], None]


class ExecutableStep(ABC):
    """A whole step, gradient and update, for one kind of arguments; call it after `compile`.

    Attributes:
        recording: of the step.
        groups: the flat vectors that it updates.
    """

    def __init__(self, recording: Recording, groups: Sequence[ParameterGroup]) -> None:
        self.recording, self.groups = recording, groups

    def __call__(self, batch: list[Tensor]) -> Any:
        """Take one step; the losses as the program returns them."""
        before = self.count
        try:
            with torch.no_grad():
                return self.recording.losses(self.take(batch))
        except RuntimeError:  # a factorization fails before the update
            self.undo_count(self.count - before)
            raise

    @property
    def state(self) -> list[Tensor]:
        """Parameters and moments, which a step changes."""
        return [tensor for group in self.groups for tensor in group.state]

    @property
    def mutated(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [*self.state, *(self.recording.sources[at] for at in self.recording.mutated)]

    @property
    def count(self) -> int:
        """Steps counted so far."""
        return max((group.count for group in self.groups), default=0)

    def undo_count(self, steps: int = 1) -> None:
        """Take back the count of the last steps, which changed nothing else."""
        for group in self.groups:
            group.undo_count(steps)

    @abstractmethod
    def take(
        self, batch: list[Tensor], after_scalars: Callable[[], None] | None = None
    ) -> list[Tensor]:
        """Take one step under `torch.no_grad`; the losses, flat.

        Args:
            after_scalars: called once the optimizer's scalars of this step have been read.
        """

    def take_several(
        self,
        data: list[Tensor],
        rows: Tensor | None,
        count: int,
        schedules: Sequence[PerStepTensor] = (),
        after_scalars: Callable[[], None] | None = None,
        pauses: Pauses | None = None,
    ) -> list[Tensor] | None:
        """Take steps without Python between them; the losses, flat, each (count, …).

        See `multi_step.take_steps`. None, and no step, where each has to be taken by `take`.
        """
        return None

    @property
    @abstractmethod
    def ready(self) -> bool:
        """True if it has been compiled."""

    @property
    @abstractmethod
    def graph(self) -> fx.GraphModule:
        """The function to be compiled, in aten operations."""

    @abstractmethod
    def inputs(self, batch: list[Tensor]) -> list[Tensor]:
        """The arguments of the compiled function."""

    @abstractmethod
    def compile(self, batch: list[Tensor], same_random: bool) -> None:
        """Compile the step to machine code.

        Args:
            batch: tensors for a trial against the graph itself; nothing is changed.
            same_random: draw the eager step's random numbers.

        Raises:
            Exception: any error of Inductor, such as a missing C++ compiler.
        """
