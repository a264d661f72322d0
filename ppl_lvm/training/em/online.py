"""Online expectation-maximisation: an M-step after every mini-batch.

With T̄_b the statistics of a mini-batch b of B out of N rows at the present θ, at step t = 1, 2, …

    s ← (1 - γ_t) s + γ_t N/B T̄_b(θ),    γ_t = (1 + t)^-α,    θ ← M(s),

a stochastic approximation of EM's fixed point s = T̄(θ(s)) for ½ < α ≤ 1. It starts from s = T̄ of
the rows that the start was made from. The average of s over the second half of the steps has the
best possible rate for every α < 1 (Polyak, Ruppert); the result is its M-step.

One pass over the data makes N/B updates where EM makes one, so a few passes do; every pass reads
the rows in another random order. The likelihood may fall from step to step, and what is noted for
a pass is Σ_b log p(x_b | θ before b), at parameters that change on the way.

Statistics that a model takes relative to θ are carried along when θ moves.

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
    """The steps of some starts together, on the same mini-batches.

    Args:
        model: an `EMModel` with `transport_statistics`.
        data: the rows.
        state: θ with the restarts R leading in every tensor.
        rows: numbers of the rows that the starts were made from.
        batch_size: B.
        decay: α.
        seed: of the rows' order.

    Attributes:
        passes: log-likelihood of every pass along its way, nats per row, one list a restart.
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
                f"{type(model).__name__} has no carry(state, new, made_of, statistics), which "
                "online EM needs. Leave decay out: EM over all rows."
            )
        self.data, self.state, self.decay = data, state, decay
        self.sums = Sums(model, data)
        self.order = EpochSampler(len(data), min(batch_size, len(data)), seed)
        self.passes: list[list[float]] = [[] for _ in next(iter(state.values()))]
        self.step = 0
        self._maximize, self._carry = (
            torch.vmap(model.m_step),
            torch.vmap(model.transport_statistics),
        )
        statistics, _ = self.sums.over(state, rows)
        self.statistics = {name: t * (len(data) / len(rows)) for name, t in statistics.items()}
        self.mean: Statistics = {}
        self._along = torch.zeros(len(self.passes), dtype=torch.float64)

    def run(self, num_passes: int, after_iteration: Callable[[], None] = lambda: None) -> None:
        """Step on to the end of pass `num_passes`, calling `after_iteration` after every pass.

        Raises:
            ValueError: a log-likelihood is not finite.
        """
        steps = num_passes * self.order.steps_per_epoch
        while self.step < steps:
            self._advance(averaged=self.step >= steps // 2, averages=self.step - steps // 2)
            if self.step % self.order.steps_per_epoch == 0:
                self._note()
                after_iteration()

    def result(self) -> State:
        """The M-step of the averaged statistics."""
        return self._maximize(self.state, self.mean or self.statistics)

    def _advance(self, *, averaged: bool, averages: int) -> None:
        rows = self.order.rows(self.step)
        size = len(self.data) if rows is None else len(rows)
        found, log_likelihood = self.sums.over(self.state, rows)
        self.step += 1
        rate, scale = (1 + self.step) ** -self.decay, len(self.data) / size
        s = {name: t + rate * (scale * found[name] - t) for name, t in self.statistics.items()}
        if averaged:
            weight = 1 / (averages + 1)
            self.mean = {k: t + weight * (s[k] - t) for k, t in (self.mean or s).items()}
        new = self._maximize(self.state, s)
        self.statistics = self._carry(self.state, new, s, s)
        if self.mean:
            self.mean = self._carry(self.state, new, s, self.mean)
        self.state = new
        self._along = self._along + log_likelihood.double().cpu()

    def _note(self) -> None:
        for r, bound in enumerate((self._along / len(self.data)).tolist()):
            if not abs(bound) < float("inf"):
                raise ValueError(
                    f"The log-likelihood is {bound} in pass {len(self.passes[r]) + 1}. Use larger "
                    "mini-batches, look for values far out in the data, or raise the model's floor."
                )
            self.passes[r].append(bound)
        self._along = torch.zeros_like(self._along)

    # What a resumed run needs; it goes on at the end of a pass

    def tensors(self) -> dict[str, Tensor]:
        """θ, the statistics and their average by name."""
        parts = {"state": self.state, "statistics": self.statistics, "mean": self.mean}
        return {f"{part}/{k}": t for part, found in parts.items() for k, t in found.items()}

    def progress(self) -> dict[str, Any]:
        """The rest, as plain data."""
        return {"step": self.step, "passes": self.passes}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from what `tensors` and `progress` said."""
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "statistics": {}, "mean": {}}
        for name, tensor in tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = tensor.to(next(iter(self.state.values())))
        self.state, self.statistics, self.mean = parts["state"], parts["statistics"], parts["mean"]
        self.step, self.passes = progress["step"], progress["passes"]
