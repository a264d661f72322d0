"""Rows per diagnostic; fewer for guides with many latents.

A chain of T latents runs its networks T times for every row and draw. Rows therefore fall with the
number of latents, and, beyond two, temperatures too: the work is that of a pair with few latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_lvm.core.types import Batch
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.programs.pair import ModelGuidePair

MAX_ROWS, MIN_ROWS = 1000, 100
MAX_ANNEALING_ROWS, MAX_SANDWICH_ROWS, MIN_ANNEALING_ROWS = 300, 100, 20
# Latents per row up to which annealing takes all of its temperatures, and the fewest beyond.
FULL_LATENTS, MIN_TEMPERATURES = 2, 10


@dataclass(frozen=True)
class Budget:
    """Numbers of rows and temperatures.

    Attributes:
        latents: sites that the guide draws.
        joint: True if rows share latents, so that they cannot be evaluated separately.
    """

    latents: int
    joint: bool

    @classmethod
    def of(cls, pair: ModelGuidePair, batch: Batch) -> "Budget":
        """The budget of a fitted pair."""
        with pair.scope():
            structure = analyze_pair(pair.model, pair.guide, batch, {})
        return cls(max(1, len(structure.latents)), structure.data_plate is None)

    @property
    def rows(self) -> int:
        """Rows for most diagnostics."""
        return max(MIN_ROWS, MAX_ROWS // self.latents)

    @property
    def annealing_rows(self) -> int:
        """Rows whose log p(x) is annealed."""
        return max(MIN_ANNEALING_ROWS, MAX_ANNEALING_ROWS // self.latents)

    @property
    def simulated_rows(self) -> int:
        """Rows of the sandwich."""
        return max(MIN_ANNEALING_ROWS, MAX_SANDWICH_ROWS // self.latents)

    def temperatures(self, requested: int) -> int:
        """Number of temperatures within the budget."""
        share = requested * FULL_LATENTS // max(self.latents, FULL_LATENTS)
        return max(share, min(requested, MIN_TEMPERATURES))


def evenly_spaced_rows(batch: Batch, count: int) -> Batch:
    """At most `count` rows, evenly spaced over the batch."""
    rows = len(batch[0])
    if rows <= count:
        return batch
    index = torch.linspace(0, rows - 1, count).round().long()
    return tuple(
        t[index] if isinstance(t, Tensor) and t.dim() and len(t) == rows else t for t in batch
    )
