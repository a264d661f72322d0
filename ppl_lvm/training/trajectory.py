"""Trajectories of parameters and responsibilities, for the diagnostics.

A record has 200 to 400 moments of a long run and 1,000 entries of the unconstrained parameters, so
that it costs little. R̂ over iterates and over restarts is computed from it, and the agreement of
the restarts' clusterings from the responsibilities of a mixture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_lvm.compiler import Pauses
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.posterior import predict
from ppl_lvm.programs.pair import ModelGuidePair

MOMENTS, ENTRIES = 200, 1000
CLUSTERED_ROWS = 500
FINAL_SHARE, PARTS = 0.2, 20


@dataclass
class Trajectory:
    """Trajectory of one restart.

    Attributes:
        iterates: parameter's name -> (T, c), c of its unconstrained entries at T moments.
        bounds: (20,) means of the bound over consecutive parts of the last fifth of the steps,
            nats per row; empty with fewer than 100 steps.
        responsibilities: summed-out discrete site -> (rows, states) of at most 500 rows.
    """

    iterates: dict[str, Tensor] = field(default_factory=dict)
    bounds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    responsibilities: dict[str, Tensor] = field(default_factory=dict)


class ParameterRecorder:
    """Records entries of the parameters during training.

    Args:
        leaves: name -> parameter, changed in place by the optimizer.
        num_steps: foreseen number of steps. A shorter run has fewer records; of a longer one
            every second record is dropped when there are 400.
    """

    def __init__(self, leaves: Mapping[str, Tensor], num_steps: int) -> None:
        self._leaves = leaves
        self._first_every = self._every = max(1, num_steps // MOMENTS)
        self._next = self._every
        total = sum(leaf.numel() for leaf in leaves.values())
        self._index = {
            name: torch.linspace(
                0, leaf.numel() - 1, min(leaf.numel(), -(-ENTRIES * leaf.numel() // total))
            ).long()
            for name, leaf in leaves.items()
        }
        self._records: list[dict[str, Tensor]] = []

    def record(self, step: int) -> None:
        """Record the parameters after `step` steps, if a record is due."""
        if step < self._next:
            return
        self._records.append(
            {
                name: leaf.detach().reshape(-1)[self._index[name].to(leaf.device)].cpu()
                for name, leaf in self._leaves.items()
            }
        )
        if len(self._records) == 2 * MOMENTS:
            self._records = self._records[1::2]
        self._plan(step)

    def pauses(self, step: int, count: int) -> Pauses:
        """Pauses of a call of `count` steps after `step`, in which records are due."""
        due = range(self._next - step, count + 1, self._every)
        return Pauses(due, lambda taken: self.record(step + taken))

    def state(self) -> tuple[Any, ...]:
        """The records so far, for `restore` after steps that are undone."""
        return list(self._records), self._every, self._next

    def restore(self, state: tuple[Any, ...]) -> None:
        """Return to a `state`."""
        self._records, self._every, self._next = state

    def _plan(self, step: int) -> None:
        """Set the step of the next record, the same after a resume."""
        doublings = math.floor(math.log2(step / self._first_every / MOMENTS))
        self._every = self._first_every * 2 ** max(0, doublings)
        self._next = (step // self._every + 1) * self._every

    def tensors(self) -> dict[str, Tensor]:
        """Parameter's name -> (T, c); empty before the first record."""
        if not self._records:
            return {}
        return {n: torch.stack([r[n] for r in self._records]) for n in self._leaves}

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue from the value of `tensors()` after `step` steps."""
        count = len(next(iter(tensors.values()))) if tensors else 0
        self._records = [{n: t[i] for n, t in tensors.items()} for i in range(count)]
        self._plan(step)


def num_final_steps(steps: int) -> int:
    """Number of final steps: a fifth, at least 40, a multiple of 20."""
    return max(int(steps * FINAL_SHARE), 2 * PARTS) // PARTS * PARTS


def last_bounds(bounds: Sequence[float] | NDArray[np.float64]) -> Tensor:
    """Means over 20 consecutive parts of the final steps: (20,); (0,) with under 100 steps."""
    if len(bounds) < 100:
        return torch.empty(0, dtype=torch.float64)
    last = torch.tensor(bounds[-num_final_steps(len(bounds)) :], dtype=torch.float64)
    return last.reshape(PARTS, -1).mean(1)


def clusterings(pair: ModelGuidePair, *batch: Tensor) -> dict[str, Tensor]:
    """Responsibilities (rows, states) of the discrete local sites that the model sums out."""
    summed = predict.summed_sites(pair, *batch, local=True)
    if not summed:
        return {}
    with preserve_rng():
        codes = predict.encode(pair, *batch)
    return {n: r.float() for n, r in codes.items() if n in summed and r.dim() == 2}


def to_tensors(trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
    """Trajectories as tensors by name, for one file."""
    tensors = {}
    for number, trajectory in enumerate(trajectories):
        tensors[f"{number}/bounds"] = trajectory.bounds
        for kind in ("iterates", "responsibilities"):
            named = getattr(trajectory, kind)
            tensors |= {f"{number}/{kind}/{name}": tensor for name, tensor in named.items()}
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> list[Trajectory]:
    """The trajectories that `to_tensors` stored.

    Raises:
        ValueError: a name is not one of `to_tensors`.
    """
    trajectories = [Trajectory() for _ in {name.split("/")[0] for name in tensors}]
    for name, tensor in tensors.items():
        number, kind, *rest = [*name.split("/", 2), ""][:3]
        if number not in map(str, range(len(trajectories))) or tensor.is_complex():
            raise ValueError(f"{name} belongs to no restart")
        trajectory = trajectories[int(number)]
        if kind == "bounds" and tensor.dim() == 1:
            trajectory.bounds = tensor
        elif kind == "iterates" and tensor.dim() == 2:
            trajectory.iterates[rest[0]] = tensor
        elif kind == "responsibilities" and tensor.dim() == 2:
            trajectory.responsibilities[rest[0]] = tensor
        else:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} is no trajectory")
    return trajectories
