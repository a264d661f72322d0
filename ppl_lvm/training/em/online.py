"""Online EM: an M-step after every mini-batch.

With T̄_b the statistics of a mini-batch b of B out of N rows at the present θ, at step t = 1, 2, …

    s ← (1 - γ_t) s + γ_t N/B T̄_b(θ),    γ_t = (1 + t)^-α,    θ ← M(s),

a stochastic approximation of EM's fixed point s = T̄(θ(s)) for ½ < α ≤ 1. Its first s is T̄ of
the rows from which θ was initialized. The average of s over the second half of the steps has the
best possible rate for every α < 1 (Polyak, Ruppert); the result is its M-step.

One pass over the data makes N/B updates, where EM makes one, so a few passes are enough. Every
pass reads the rows in another random order. The likelihood may fall from step to step. The bound
of a pass is Σ_b log p(x_b | θ before b), at parameters that change during the pass.

Statistics that a model takes relative to θ are transported when θ changes.

References:
    Cappé, Moulines (2009). On-line expectation-maximization algorithm for latent data models.
    https://doi.org/10.1111/j.1467-9868.2009.00698.x, equations 4, 5 and 2.3 (averaging).
    Liang, Klein (2009). Online EM for unsupervised models. The step sizes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.data import Data
from ppl_lvm.training.batching import EpochSampler
from ppl_lvm.training.em.statistics import State, Statistics, Sums


class OnlineEM:
    """Online EM of R restarts together, on the same mini-batches.

    Args:
        model: an `EMModel` with `transport_statistics`.
        state: θ; the leading dimension of every tensor is R.
        rows: indices of the rows from which θ was initialized.
        batch_size: B.
        decay: α.

    Attributes:
        bounds: bound of every pass, nats per row, one list a restart; `finish` appends the
            log-likelihood of the result.
        held_out_bounds: log-likelihood of the result on held-out rows, one list a restart.
        converged: None for each restart, because online EM has no convergence test.
    """

    def __init__(
        self,
        model: Any,
        data: Data,
        state: State,
        rows: Tensor,
        *,
        batch_size: int,
        decay: float,
        seed: int = 0,
    ) -> None:
        if not 0.5 < decay <= 1:
            raise ValueError(f"decay={decay} must lie above 0.5 and be at most 1.")
        if not hasattr(model, "transport_statistics"):
            raise ValueError(
                f"{type(model).__name__} has no transport_statistics(state, new, made_of, "
                "statistics), which online EM needs. Leave decay out, for EM over all rows."
            )
        self.data, self.state, self.decay = data, state, decay
        self.sums = Sums(model, data)
        self.order = EpochSampler(len(data), min(batch_size, len(data)), seed, data.blocks)
        R = len(next(iter(state.values())))
        self.bounds: list[list[float]] = [[] for _ in range(R)]
        self.held_out_bounds: list[list[float]] = [[] for _ in range(R)]
        self.converged = [None] * R
        self.step = 0
        self._maximize = torch.vmap(model.m_step)
        self._transport = torch.vmap(model.transport_statistics)
        statistics, _ = self.sums.over(state, rows)
        self.statistics = {name: t * (len(data) / len(rows)) for name, t in statistics.items()}
        self.mean: Statistics = {}
        self._pass_total = torch.zeros(R, dtype=torch.float64)

    def run(self, num_passes: int, after_iteration: Callable[[], None] = lambda: None) -> None:
        """Step to the end of pass `num_passes`, and call `after_iteration` after every pass.

        Raises:
            ValueError: a log-likelihood is not finite.
        """
        steps = num_passes * self.order.steps_per_epoch
        while self.step < steps:
            self._advance(averaged=self.step >= steps // 2, averages=self.step - steps // 2)
            if self.step % self.order.steps_per_epoch == 0:
                self._record_pass()
                after_iteration()

    def finish(self, held_out: Data | None) -> None:
        """Set θ to the M-step of the averaged statistics, and record its log-likelihoods."""
        self.state = self._maximize(self.state, self.mean or self.statistics)
        for data, bounds in ((self.data, self.bounds), (held_out, self.held_out_bounds)):
            if data is not None:
                _, log_likelihood = Sums(self.sums.model, data).over(self.state)
                for r, bound in enumerate((log_likelihood / data.total_weight).tolist()):
                    bounds[r].append(bound)

    def _advance(self, *, averaged: bool, averages: int) -> None:
        rows = self.order.rows(self.step)
        size = len(self.data) if rows is None else len(rows)
        statistics, log_likelihood = self.sums.over(self.state, rows)
        self.step += 1
        rate, scale = (1 + self.step) ** -self.decay, len(self.data) / size
        s = {k: t + rate * (scale * statistics[k] - t) for k, t in self.statistics.items()}
        if averaged:
            weight = 1 / (averages + 1)
            self.mean = {k: t + weight * (s[k] - t) for k, t in (self.mean or s).items()}
        new = self._maximize(self.state, s)
        self.statistics = self._transport(self.state, new, s, s)
        if self.mean:
            self.mean = self._transport(self.state, new, s, self.mean)
        self.state = new
        self._pass_total = self._pass_total + log_likelihood.double().cpu()

    def _record_pass(self) -> None:
        for r, bound in enumerate((self._pass_total / self.data.total_weight).tolist()):
            if not abs(bound) < float("inf"):
                raise ValueError(
                    f"The log-likelihood is {bound} in pass {len(self.bounds[r]) + 1}. Use larger "
                    "mini-batches, look for outliers in the data, or raise the model's floor."
                )
            self.bounds[r].append(bound)
        self._pass_total = torch.zeros_like(self._pass_total)

    # Checkpoint, at the end of a pass

    def tensors(self) -> dict[str, Tensor]:
        """θ, the statistics and their average by name."""
        parts = {"state": self.state, "statistics": self.statistics, "mean": self.mean}
        return {f"{part}/{k}": t for part, group in parts.items() for k, t in group.items()}

    def progress(self) -> dict[str, Any]:
        """Step and bounds, as plain data."""
        return {"step": self.step, "bounds": self.bounds}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from `tensors` and `progress`."""
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "statistics": {}, "mean": {}}
        for name, tensor in tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = tensor.to(next(iter(self.state.values())))
        self.state, self.statistics, self.mean = parts["state"], parts["statistics"], parts["mean"]
        self.step, self.bounds = progress["step"], progress["bounds"]
