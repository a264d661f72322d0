"""Rows of each step and steps of each call.

Both are functions of the step alone, so that a resumed run sees the same rows in the same calls.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.types import Array
from ppl_lvm.data.blocks.order import ShuffleBlocks


class _EpochPlan(NamedTuple):
    """Blocks of each buffer of an epoch, and the first row of each buffer, then N."""

    epoch: int
    buffers: list[Array]
    starts: Array

    @property
    def first(self) -> Array:
        return self.buffers[0]


def _generator(*seed: int) -> torch.Generator:
    words = np.random.SeedSequence(seed).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


class EpochSampler:
    """Mini-batches from a new permutation of the rows in each epoch.

    The permutation is a function of seed and epoch. Rows in files are permuted by blocks: a
    permutation of the blocks, cut into buffers of about `blocks.buffer` rows, and a permutation of
    the rows of each buffer. Rows in memory are one buffer. The last batch of an epoch has the
    remaining rows. With B = N every batch has all rows.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, blocks: ShuffleBlocks | None = None
    ) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.steps_per_epoch = math.ceil(num_rows / batch_size)
        self._blocks = blocks
        self._sizes = np.array([num_rows]) if blocks is None else blocks.sizes
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self._plan = _EpochPlan(-1, [], np.empty(0))
        self._permuted: dict[tuple[int, int], Tensor] = {}  # rows of the last two buffers

    def rows(self, step: int) -> Tensor | None:
        """Row numbers (B,) of step `step`, counted from 0; None where it sees all rows."""
        if self.batch_size >= self.num_rows:
            return None
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._plan.epoch:
            self._plan = self._planned(epoch)
        begin = position * self.batch_size
        end = min(begin + self.batch_size, self.num_rows)
        starts = self._plan.starts  # first row of each buffer, then N
        parts = []
        for k in range(int(np.searchsorted(starts, begin, side="right")) - 1, len(starts) - 1):
            if starts[k] >= end:
                break
            first = int(starts[k])
            parts.append(self._buffer(k)[max(begin - first, 0) : end - first])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _planned(self, epoch: int) -> "_EpochPlan":
        """Blocks of each buffer of an epoch."""
        if self._blocks is None:
            return _EpochPlan(epoch, [np.zeros(1, np.int64)], np.array([0, self.num_rows]))
        present = np.flatnonzero(self._sizes)
        order = present[torch.randperm(len(present), generator=_generator(self.seed, epoch, 0))]
        ends = np.cumsum(self._sizes[order])
        buffer = max(self._blocks.buffer, self.batch_size)  # a batch is in two of them at most
        buffers, starts, first = [], [0], 0
        while first < len(order):
            full = int(np.searchsorted(ends, starts[-1] + buffer, side="right"))
            last = max(full, first + 1)
            buffers.append(order[first:last])
            starts.append(int(ends[last - 1]))
            first = last
        return _EpochPlan(epoch, buffers, np.array(starts))

    def _buffer(self, k: int) -> Tensor:
        """Row numbers of buffer k of the epoch in the order of the steps."""
        epoch, buffers, _ = self._plan
        if (epoch, k) in self._permuted:
            return self._permuted[epoch, k]
        blocks = buffers[k]
        if self._blocks is None:
            rows = torch.randperm(self.num_rows, generator=_generator(self.seed, epoch))
        else:
            following = buffers[k + 1] if k + 1 < len(buffers) else self._planned(epoch + 1).first
            self._blocks.read_ahead(blocks.tolist())
            self._blocks.read_ahead(following.tolist())
            numbers = [np.arange(self._firsts[b], self._firsts[b] + self._sizes[b]) for b in blocks]
            of_buffer = torch.from_numpy(np.concatenate(numbers))
            generator = _generator(self.seed, epoch, k + 1)
            rows = of_buffer[torch.randperm(len(of_buffer), generator=generator)]
        latest = dict(list(self._permuted.items())[-1:]) if self._blocks is not None else {}
        self._permuted = {**latest, (epoch, k): rows}
        return rows

    def is_smaller(self, step: int) -> bool:
        """True if the batch of this step is smaller than the others."""
        last = step % self.steps_per_epoch == self.steps_per_epoch - 1
        return last and self.num_rows % self.batch_size != 0 and self.batch_size < self.num_rows


class CallSchedule:
    """Number of steps in one call.

    A call ends before an evaluation, the end of the run, and a batch of another size.
    """

    def __init__(
        self, sampler: EpochSampler, most: int, validate_every: int, num_steps: int
    ) -> None:
        self._sampler, self._most = sampler, most
        self._validate_every, self._num_steps = validate_every, num_steps
        last = sampler.steps_per_epoch - 1
        self._epoch = sampler.steps_per_epoch if sampler.is_smaller(last) else 0

    def __call__(self, step: int) -> int:
        """Number of steps in the call that begins at `step`, counted from 0."""
        if self._sampler.is_smaller(step):
            return 1
        validation = step - step % self._validate_every + self._validate_every
        stop = min(step + self._most, validation, self._num_steps)
        if self._epoch:
            stop = min(stop, step - step % self._epoch + self._epoch - 1)
        return stop - step
