"""Sums of an E-step over rows: of every restart together, batch by batch, over all processes.

Parameters and sums of R restarts are dictionaries whose tensors have R leading.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ppl_lvm.core import distributed as processes
from ppl_lvm.data import Data

READ_ROWS = 65_536
TOGETHER_ROWS = 1024

State = dict[str, Tensor]
Statistics = dict[str, Tensor]


class Sums:
    """T̄ and log-likelihood of rows of `data`, `batch_size` of them read at once.

    Under torch.distributed each process reads its part of the rows, and all get the same sums.
    """

    def __init__(self, model: Any, data: Data, batch_size: int = READ_ROWS) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size

    def over(self, state: State, rows: Tensor | None = None) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (R,) of `state` over the rows of those numbers (default: all)."""
        total: Statistics = {}
        log_likelihood: Any = 0.0
        rows = torch.arange(len(self.data)) if rows is None else rows
        for batch in self._batches(processes.mine(rows), like=next(iter(state.values()))):
            statistics, part = self._of(state, *batch)
            log_likelihood = log_likelihood + part
            total = {name: t + total[name] if total else t for name, t in statistics.items()}
        if processes.count() > 1:
            own = float(processes.weight(len(rows)) > 0)  # a process without rows took one, for 0
            # In memory of their own: sums that do not depend on θ are one number for all restarts.
            total, log_likelihood = {k: t * own for k, t in total.items()}, log_likelihood * own
            for t in (*total.values(), log_likelihood):
                dist.all_reduce(t)
        return total, log_likelihood

    def _of(self, state: State, *batch: Tensor) -> tuple[Statistics, Tensor]:
        """`e_step` of every restart: as the model does it for many, or together where rows are
        few, or in turn where they are many.

        In turn, a batch stays in the processor's cache and the fastest matrix products apply,
        which vmap forbids; together, the operations' fixed costs are paid once.
        """
        R = len(next(iter(state.values())))
        if R > 1 and hasattr(self.model, "e_steps"):
            found: tuple[Statistics, Tensor] = self.model.e_steps(state, *batch)
            return found
        if R > 1 and len(batch[0]) <= TOGETHER_ROWS:
            step = torch.vmap(self.model.e_step, in_dims=(0, *[None] * len(batch)))
            together: tuple[Statistics, Tensor] = step(state, *batch)
            return together
        one = [self.model.e_step({k: t[r] for k, t in state.items()}, *batch) for r in range(R)]
        statistics = {k: torch.stack([each[k] for each, _ in one]) for k in one[0][0]}
        return statistics, torch.stack([log_likelihood for _, log_likelihood in one])

    def _batches(self, rows: Tensor, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for some in rows.split(self.batch_size):
            yield tuple(
                t.to(like) if t.is_floating_point() else t.to(like.device)
                for t in self.data.batch(some)
            )
