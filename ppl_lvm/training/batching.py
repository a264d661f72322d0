"""Which rows a step sees, and how many steps one call takes: functions of the step alone.

So a resumed run sees the same rows in the same calls.
"""

import math

import numpy as np
import torch
from torch import Tensor


class EpochSampler:
    """Every epoch a new permutation, a function of seed and epoch alone.

    The last batch of an epoch holds what is left over. With B = N there is nothing to choose.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.steps_per_epoch = math.ceil(num_rows / batch_size)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def rows(self, step: int) -> Tensor | None:
        """Row numbers (B,) of step `step`, counted from 0; None where it sees all of them."""
        if self.batch_size >= self.num_rows:
            return None
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            words = np.random.SeedSequence([self.seed, epoch]).generate_state(2)
            generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            self._permutation = torch.randperm(self.num_rows, generator=generator)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]

    def ragged(self, step: int) -> bool:
        """Whether the batch of this step is smaller than the others."""
        last = step % self.steps_per_epoch == self.steps_per_epoch - 1
        return last and self.num_rows % self.batch_size != 0 and self.batch_size < self.num_rows


class CallSchedule:
    """How many steps one call takes.

    Calls end where something happens between steps: an evaluation, the end of the run, a batch of
    another size.

    Args:
        order: the rows of every step.
        most: steps a call takes at most.
        every: steps between two evaluations.
        last: steps in all.
    """

    def __init__(self, order: EpochSampler, most: int, every: int, last: int) -> None:
        self._order, self._most, self._every, self._last = order, most, every, last
        self._epoch = order.steps_per_epoch if order.ragged(order.steps_per_epoch - 1) else 0

    def __call__(self, step: int) -> int:
        """Steps of the call that begins at `step`, counted from 0."""
        if self._order.ragged(step):
            return 1
        stop = min(step + self._most, step - step % self._every + self._every, self._last)
        if self._epoch:
            stop = min(stop, step - step % self._epoch + self._epoch - 1)
        return stop - step
