"""On how many rows a pair is asked: one whose guide draws many latents a row on fewer.

A chain of T latents runs its networks T times for every row and draw. So rows fall with the number
of latents, and, beyond two, so do temperatures: the work is that of a pair with few.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.programs.pair import ModelGuidePair

# Most rows, and fewest where the guide draws many latents a row.
MAX_ROWS, LEAST_ROWS = 1000, 100
ANNEALED_ROWS, SANDWICH_ROWS, LEAST_ANNEALED = 300, 100, 20
# Latents a row up to which annealing takes all of its temperatures, and the fewest beyond.
FULL_LATENTS, LEAST_TEMPERATURES = 2, 10


@dataclass(frozen=True)
class Budget:
    """What a pair is asked on.

    Attributes:
        latents: sites that the guide draws.
        joint: whether rows share latents, and so are asked about together.
    """

    latents: int
    joint: bool

    @classmethod
    def of(cls, pair: ModelGuidePair, batch: tuple[Any, ...]) -> "Budget":
        """Those of a fitted pair."""
        with pair.scope():
            plan = analyze_pair(pair.model, pair.guide, batch, {})
        return cls(max(1, len(plan.latents)), plan.data_plate is None)

    @property
    def rows(self) -> int:
        """Rows for most questions."""
        return max(LEAST_ROWS, MAX_ROWS // self.latents)

    @property
    def annealing_rows(self) -> int:
        """Of these, rows whose log p(x) is annealed."""
        return max(LEAST_ANNEALED, ANNEALED_ROWS // self.latents)

    @property
    def simulated_rows(self) -> int:
        """Rows of the sandwich."""
        return max(LEAST_ANNEALED, SANDWICH_ROWS // self.latents)

    def temperatures(self, asked: int) -> int:
        """How many of the temperatures that were asked for."""
        share = asked * FULL_LATENTS // max(self.latents, FULL_LATENTS)
        return max(share, min(asked, LEAST_TEMPERATURES))


def evenly_spaced_rows(batch: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """At most `count` rows, spread evenly over the batch."""
    rows = len(batch[0])
    if rows <= count:
        return batch
    index = torch.linspace(0, rows - 1, count).round().long()
    return tuple(
        t[index] if isinstance(t, Tensor) and t.dim() and len(t) == rows else t for t in batch
    )
