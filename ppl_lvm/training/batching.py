"""Rows of each step and steps of each call.

Both are functions of the step alone, so that a resumed run sees the same rows in the same calls.
"""

import math

import numpy as np
import torch
from torch import Tensor


class EpochSampler:
    """Mini-batches from a new permutation of the rows in each epoch.

    The permutation is a function of seed and epoch. The last batch of an epoch has the remaining
    rows. With B = N every batch has all rows.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.steps_per_epoch = math.ceil(num_rows / batch_size)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def rows(self, step: int) -> Tensor | None:
        """Row numbers (B,) of step `step`, counted from 0; None where it sees all rows."""
        if self.batch_size >= self.num_rows:
            return None
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            words = np.random.SeedSequence([self.seed, epoch]).generate_state(2)
            generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            self._permutation = torch.randperm(self.num_rows, generator=generator)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]

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
