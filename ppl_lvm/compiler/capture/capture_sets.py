"""Captures of a step, by trainable parameters and by arguments.

A recording holds the gradient of the parameters that were trainable when it was made. A program
whose parameters are frozen in turns has one set of recordings for each selection.
"""

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ppl_lvm.compiler.graph.ir import Recording, Tape

_NUMBERS = itertools.count()


@dataclass
class CapturedKind:
    """State of the capture for arguments of one key."""

    tape: Tape | None = None
    attempts: int = 0
    recording: Recording | None = None


@dataclass
class Captures:
    """The captures while the same parameters are frozen.

    Attributes:
        parameters: leaf tensors that are trained.
        entries: by arguments.
        number: of this selection.
        extensions: how many times a parameter has come later.
        open: False if no more selections are captured.
    """

    parameters: list[Tensor] = field(default_factory=list)
    entries: dict[Hashable, CapturedKind] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_NUMBERS))
    extensions: int = 0
    open: bool = True


class CaptureSets:
    """The captures of each selection of frozen parameters, and those in use.

    Args:
        limit: selections that are captured.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self._frozen: frozenset[int] = frozenset()
        self.current = Captures()
        self._sets = {self._frozen: self.current}

    def select(self, frozen: frozenset[int]) -> None:
        """Continue with the captures that belong to these frozen parameters, given by `id`."""
        if frozen == self._frozen:
            return
        if not self.current.parameters and self.current.open:  # no step has been taken with it
            del self._sets[self._frozen]
            self._sets.setdefault(frozen, self.current)
        elif frozen not in self._sets and len(self._sets) < self._limit:
            self._sets[frozen] = Captures()
        self._frozen = frozen
        self.current = self._sets.get(frozen) or Captures(open=False)

    def drop_those_that_train(self, parameters: set[int]) -> None:
        """Drop recordings made while one of these parameters, given by `id`, was trainable."""
        for frozen, captures in self._sets.items():
            if not parameters <= frozen:
                captures.entries.clear()

    def entries(self) -> Iterator[tuple[Captures, Hashable, CapturedKind]]:
        """All of them."""
        for captures in self._sets.values():
            for key, entry in list(captures.entries.items()):
                yield captures, key, entry

    def recordings(self) -> list[Recording]:
        """The recordings of all kinds of arguments."""
        return [e.recording for _, _, e in self.entries() if e.recording is not None]
