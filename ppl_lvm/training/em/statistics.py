"""Sums of the E-step over rows, restarts and processes.

Parameters and sums of R restarts are dictionaries of tensors with leading dimension R.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ppl_lvm.core import distributed
from ppl_lvm.data import Data, in_order

READ_ROWS = 65_536
VMAP_ROWS = 1024
MOST_WEIGHTS = 32  # different weights in a batch, with one E-step each

State = dict[str, Tensor]
Statistics = dict[str, Tensor]


class Sums:
    """T̄ and log-likelihood of rows of `data`, in batches of `batch_size`, with their weights.

    Under torch.distributed each process reads its share of the rows, and all return equal sums.
    """

    def __init__(self, model: Any, data: Data, batch_size: int = READ_ROWS) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size

    def over(self, state: State, rows: Tensor | None = None) -> tuple[Statistics, Tensor]:
        """T̄ and log-likelihood (R,) of `state`, summed over `rows` (default: all)."""
        total: Statistics = {}
        log_likelihood: Any = 0.0
        count = len(self.data) if rows is None else len(rows)
        like = next(iter(state.values()))
        for batch, weights in self._batches(rows, like):
            if weights is None:
                statistics, part = self._of(state, *batch)
            else:
                statistics, part = self._weighted(state, weights, batch)
            log_likelihood = log_likelihood + part
            total = {name: t + total[name] if total else t for name, t in statistics.items()}
        if distributed.world_size() > 1:
            # A process without rows has read one, which counts 0. The products are new tensors:
            # sums that do not depend on θ share their memory among the restarts.
            share = float(distributed.local_weight(count) > 0)
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

    def _weighted(
        self, state: State, weights: Tensor, batch: tuple[Tensor, ...]
    ) -> tuple[Statistics, Tensor]:
        """Σ_n w_n T_n and Σ_n w_n log p(x_n), by a sum over rows of equal weight.

        Where most weights differ, the rows are a dimension of `torch.vmap`, unless the model
        decides something by the values of a row, which that prevents.
        """
        values = weights.unique()
        if len(values) > MOST_WEIGHTS:
            rows_first = torch.vmap(
                lambda *row: self._of(state, *(t[None] for t in row)), chunk_size=VMAP_ROWS
            )
            try:
                statistics, log_likelihood = rows_first(*batch)
            except RuntimeError:
                pass
            else:
                total = {k: torch.tensordot(weights, t, 1) for k, t in statistics.items()}
                return total, torch.tensordot(weights, log_likelihood, 1)
        parts = []
        for value in values[values > 0] if values.any() else values:
            selected = weights == value
            statistics, log_likelihood = self._of(state, *(t[selected] for t in batch))
            scaled = {k: value * t for k, t in statistics.items()}
            parts.append((scaled, value * log_likelihood))
        total = {k: sum(s[k] for s, _ in parts[1:]) + parts[0][0][k] for k in parts[0][0]}
        return total, torch.stack([part for _, part in parts]).sum(0)

    def _batches(
        self, rows: Tensor | None, like: Tensor
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Tensors and weights of this process's part of the rows."""
        weights = self.data.weights
        parts: Iterable[Tensor]
        if rows is None:
            parts = in_order(self.data, self.batch_size, *distributed.local_range(len(self.data)))
        else:
            parts = distributed.local_rows(rows).split(self.batch_size)
        for indices in parts:
            batch = tuple(
                t.to(like) if t.is_floating_point() else t.to(like.device)
                for t in self.data.batch(indices)
            )
            yield batch, None if weights is None else weights[indices].to(like)
