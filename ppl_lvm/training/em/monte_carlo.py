"""Monte Carlo EM: E-step by Markov chains, M-step by gradient.

For a model whose posterior p(z | x, θ) has no closed form. With draws z_1 … z_S of a chain (NUTS)
that leaves it invariant,

    Q_t(θ) = 1/S Σ_s log p(x, z_s | θ),    θ_{t+1} = argmax Q_t  (L-BFGS, from θ_t),

and the result is the mean of θ_t (unconstrained) over the second half of the iterations, which
averages out the error of S draws. It maximizes the likelihood, of which variational inference
maximizes a lower bound, up to the noise of the draws. It does not return the likelihood. So a
guide is fitted to the final model, and the run computes log p(x) by importance weights.

Each iteration continues the chain. Step size and mass matrix are adapted at iterations 1, 2, 4,
8, …, because θ moves less and less.

Reference:
    Wei, Tanner (1990). A Monte Carlo implementation of the EM algorithm and the poor man's data
    augmentation algorithms. https://doi.org/10.1080/01621459.1990.10474930
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.storage import strip_prefix
from ppl_lvm.training.em.complete_likelihood import CompleteLikelihood
from ppl_lvm.training.em.nuts_sampler import Draws, NutsSampler
from ppl_lvm.training.trajectory import ParameterRecorder


class MonteCarloEM:
    """Iterations of Monte Carlo EM.

    Args:
        model: fitted in place.
        batch: x, all rows.
        max_iterations: T.
        num_draws: S.
        warmup: steps of the chain in each adaptation.

    Attributes:
        history: "complete" (maximum of Q_t, nats per row) and "accept" (mean acceptance
            probability of the chain) of every iteration.
        iterates: recorder of θ_t, unconstrained.
    """

    def __init__(
        self,
        model: Any,
        batch: tuple[Tensor, ...],
        *,
        max_iterations: int,
        num_draws: int,
        warmup: int,
        progress: Progress,
    ) -> None:
        self.likelihood = CompleteLikelihood(model, batch)
        self.sampler = NutsSampler(model, batch, warmup)
        self.history: dict[str, list[float]] = {"complete": [], "accept": []}
        leaves = {f"model/{n}": p for n, p in model.named_parameters() if p.requires_grad}
        self.iterates = ParameterRecorder(leaves, max_iterations)
        self._iterations, self._num_draws, self._rows = max_iterations, num_draws, len(batch[0])
        self._progress = progress
        self._total = torch.zeros_like(self.likelihood.theta())  # of the second half

    @property
    def iteration(self) -> int:
        """Number of iterations done."""
        return len(self.history["complete"])

    def run(self, max_iterations: int, after_iteration: Callable[[], None] = lambda: None) -> None:
        """Iterate up to this total, and call `after_iteration` after each iteration."""
        self._progress.done = self.iteration
        with self._progress:
            while self.iteration < max_iterations:
                number = self.iteration + 1
                draws, accept = self.sampler.draw(self._num_draws, adapt=number & (number - 1) == 0)
                self.history["complete"].append(self.likelihood.maximize(draws) / self._rows)
                self.history["accept"].append(accept)
                if number > self._iterations // 2:
                    self._total += self.likelihood.theta()
                self.iterates.record(number)
                self._progress.advance(number, self.history["complete"][-1], ())
                after_iteration()

    def finish(self) -> Draws:
        """Set θ to the mean of θ_t; return draws (S, …) of the posterior there, one chain."""
        self.likelihood.set(self._total / (self._iterations - self._iterations // 2))
        return self.sampler.draw(self._num_draws, adapt=False)[0]

    # Checkpoint

    def tensors(self) -> dict[str, Tensor]:
        """θ, the chain, the recorded iterates and the random state."""
        tensors = {"theta": self.likelihood.theta(), "total": self._total, **random_state()}
        tensors |= {f"chain/{n}": t for n, t in self.sampler.tensors().items()}
        return tensors | {f"iterates/{n}": t for n, t in self.iterates.tensors().items()}

    def progress(self) -> dict[str, Any]:
        """History and step size, as plain data."""
        return {
            "history": self.history,
            "broadcasts": self.likelihood.broadcasts,
            "chain": self.sampler.progress(),
        }

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from `tensors` and `progress`."""
        self.history, self.likelihood.broadcasts = progress["history"], progress["broadcasts"]
        self.likelihood.set(tensors["theta"])
        self._total = tensors["total"].to(self._total)
        self.sampler.load(strip_prefix("chain/", tensors), progress["chain"])
        self.iterates.load(strip_prefix("iterates/", tensors), self.iteration)
        set_random_state(tensors)
