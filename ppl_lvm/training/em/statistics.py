"""Sums of the E-step over rows, restarts and processes.

Parameters and sums of R restarts are dictionaries of tensors with leading dimension R.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ppl_lvm.core import distributed
from ppl_lvm.data import Data

READ_ROWS = 65_536
VMAP_ROWS = 1024

State = dict[str, Tensor]
Statistics = dict[str, Tensor]


class Sums:
    """T̄ and log-likelihood of rows of `data`, in batches of `batch_size`.

    Under torch.distributed each process reads its share of the rows, and all return equal sums.
    """

    def __init__(self, model: Any, data: Data, batch_size: int = READ_ROWS) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size

    def over(self, state: State, rows: Tensor | None = None) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (R,) of `state`, summed over `rows` (default: all)."""
        total: Statistics = {}
        log_likelihood: Any = 0.0
        rows = torch.arange(len(self.data)) if rows is None else rows
        for batch in self._batches(distributed.local_rows(rows), like=next(iter(state.values()))):
            statistics, part = self._of(state, *batch)
            log_likelihood = log_likelihood + part
            total = {name: t + total[name] if total else t for name, t in statistics.items()}
        if distributed.world_size() > 1:
            # A process without rows has read one, which counts 0. The products are new tensors:
            # sums that do not depend on θ share their memory among the restarts.
            share = float(distributed.local_weight(len(rows)) > 0)
            total, log_likelihood = {k: t * share for k, t in total.items()}, log_likelihood * share
            for t in (*total.values(), log_likelihood):
                dist.all_reduce(t)
        return total, log_likelihood

    def _of(self, state: State, *batch: Tensor) -> tuple[Statistics, Tensor]:
        """`e_step` of every restart: by `e_steps` of the model, by vmap, or in a loop.

        In a loop, a batch stays in the processor's cache and the fastest matrix products apply,
        which vmap prevents. By vmap, the fixed costs of the operations arise once. So few rows
        are treated by vmap, many in a loop.
        """
        R = len(next(iter(state.values())))
        if R > 1 and hasattr(self.model, "e_steps"):
            return self.model.e_steps(state, *batch)
        if R > 1 and len(batch[0]) <= VMAP_ROWS:
            step = torch.vmap(self.model.e_step, in_dims=(0, *[None] * len(batch)))
            result: tuple[Statistics, Tensor] = step(state, *batch)
            return result
        steps = [self.model.e_step({k: t[r] for k, t in state.items()}, *batch) for r in range(R)]
        statistics = {k: torch.stack([each[k] for each, _ in steps]) for k in steps[0][0]}
        return statistics, torch.stack([log_likelihood for _, log_likelihood in steps])

    def _batches(self, rows: Tensor, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for indices in rows.split(self.batch_size):
            yield tuple(
                t.to(like) if t.is_floating_point() else t.to(like.device)
                for t in self.data.batch(indices)
            )
