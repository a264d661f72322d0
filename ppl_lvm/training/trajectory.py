"""What a start leaves behind for the diagnostics: some of its way, and how it divided the rows.

A record of parameters, thin and bounded: at most 200 moments spread over the run and 1,000 numbers
spread over the unconstrained parameters, so that it costs a run nothing that shows. From it comes
R̂ of the parameters over iterates and over restarts; from the responsibilities of a mixture comes
the agreement of the restarts' clusterings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.posterior import predict
from ppl_lvm.programs.pair import ModelGuidePair

MOMENTS, NUMBERS = 200, 1000
CLUSTERED_ROWS = 500
STRETCH, BATCHES = 0.2, 20


@dataclass
class Trajectory:
    """Of one start.

    Attributes:
        iterates: parameter's name -> (T, c), c of its numbers, unconstrained, at T moments.
        bounds: (20,) means of the bound over consecutive parts of the last fifth of the steps,
            nats per row; empty where there were fewer than 100 steps.
        responsibilities: summed-out discrete site -> (rows, states) of at most 500 rows.
    """

    iterates: dict[str, Tensor] = field(default_factory=dict)
    bounds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    responsibilities: dict[str, Tensor] = field(default_factory=dict)


class ParameterRecorder:
    """Writes the parameters down while they move.

    Args:
        leaves: name -> parameter, changed in place by the optimiser.
        num_steps: how many steps are planned; a run that stops early leaves fewer records.
    """

    def __init__(self, leaves: Mapping[str, Tensor], num_steps: int) -> None:
        self._leaves = leaves
        self._every = max(1, num_steps // MOMENTS)
        self._next = self._every
        total = sum(leaf.numel() for leaf in leaves.values())
        self._index = {
            name: torch.linspace(
                0, leaf.numel() - 1, min(leaf.numel(), -(-NUMBERS * leaf.numel() // total))
            ).long()
            for name, leaf in leaves.items()
        }
        self._records: list[dict[str, Tensor]] = []

    def keep(self, step: int) -> None:
        """Write down, if it is time, what the parameters are after `step` steps."""
        if step < self._next:
            return
        self._next = (step // self._every + 1) * self._every  # the same after a resumption
        self._records.append(
            {
                name: leaf.detach().reshape(-1)[self._index[name].to(leaf.device)].cpu()
                for name, leaf in self._leaves.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Parameter's name -> (T, c); empty before the first record."""
        if not self._records:
            return {}
        return {n: torch.stack([r[n] for r in self._records]) for n in self._leaves}

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue from what `tensors` gave after `step` steps."""
        count = len(next(iter(tensors.values()))) if tensors else 0
        self._records = [{n: t[i] for n, t in tensors.items()} for i in range(count)]
        self._next = (step // self._every + 1) * self._every


def stretch(steps: int) -> int:
    """How many steps are the last stretch: a fifth, at least 40, a multiple of 20."""
    return max(int(steps * STRETCH), 2 * BATCHES) // BATCHES * BATCHES


def last_bounds(bounds: Sequence[float] | NDArray[np.float64]) -> Tensor:
    """Means over 20 consecutive parts of the last stretch: (20,); (0,) with under 100 steps."""
    if len(bounds) < 100:
        return torch.empty(0, dtype=torch.float64)
    last = torch.tensor(bounds[-stretch(len(bounds)) :], dtype=torch.float64)
    return last.reshape(BATCHES, -1).mean(1)


def clusterings(pair: ModelGuidePair, *batch: Tensor) -> dict[str, Tensor]:
    """Responsibilities (rows, states) of the discrete local sites that the model sums out."""
    summed = predict.summed_sites(pair, *batch)
    if not summed:
        return {}
    with preserve_rng():
        codes = predict.encode(pair, *batch)
    return {n: r.float() for n, r in codes.items() if n in summed and r.dim() == 2}


def pack(trails: Sequence[Trajectory]) -> dict[str, Tensor]:
    """All starts as tensors by name, for one file."""
    found = {}
    for number, trail in enumerate(trails):
        found[f"{number}/bounds"] = trail.bounds
        found |= {f"{number}/iterates/{n}": t for n, t in trail.iterates.items()}
        found |= {f"{number}/responsibilities/{n}": t for n, t in trail.responsibilities.items()}
    return found


def unpack(tensors: Mapping[str, Tensor]) -> list[Trajectory]:
    """The starts of a file that `pack` made."""
    trails = [Trajectory() for _ in {name.split("/")[0] for name in tensors}]
    for name, tensor in tensors.items():
        number, kind, *rest = name.split("/", 2)
        if kind == "bounds":
            trails[int(number)].bounds = tensor
        else:
            getattr(trails[int(number)], kind)[rest[0]] = tensor
    return trails
