"""Monte-Carlo EM: the E-step by Markov chains, the M-step by gradient.

For a model whose posterior p(z | x, θ) has no closed form. With draws z_1 … z_S of a chain (NUTS)
that leaves it invariant,

    Q_t(θ) = 1/S Σ_s log p(x, z_s | θ),    θ_{t+1} = argmax Q_t  (L-BFGS, from θ_t),

and the result is the mean of θ_t (unconstrained) over the second half of the iterations, in which
the error of S draws averages out. It is maximum likelihood: what variational inference only
bounds, up to the noise of the draws. No likelihood falls out of it. So a guide is fitted to the
model as it then stands, and the run answers as any other does: log p(x) by importance weights.

The chain goes on where it stopped. Step size and mass matrix are adapted at iterations 1, 2, 4,
8, …, since θ moves less and less.

    fit_mcem -> chain (E) -> joint (M) -> guide_after

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
    """The iterations.

    Args:
        model: fitted in place.
        batch: x, all rows.
        max_iterations: T.
        num_draws: S.
        warmup: steps of the chain in which it adapts, each time.
        progress: what shows how far it has come.

    Attributes:
        history: "complete" (Q_t at its maximum, nats per row) and "accept" (the chain's mean
            acceptance probability) of every iteration.
        iterates: θ_t, unconstrained, as far as a `Trajectory` keeps them.
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
        self.joint = CompleteLikelihood(model, batch)
        self.chain = NutsSampler(model, batch, warmup)
        self.history: dict[str, list[float]] = {"complete": [], "accept": []}
        leaves = {f"model/{n}": p for n, p in model.named_parameters() if p.requires_grad}
        self.iterates = ParameterRecorder(leaves, max_iterations)
        self._iterations, self._num_draws, self._rows = max_iterations, num_draws, len(batch[0])
        self._progress = progress
        self._total = torch.zeros_like(self.joint.theta())  # of the second half

    @property
    def iteration(self) -> int:
        """How many are done."""
        return len(self.history["complete"])

    def run(self, max_iterations: int, after_iteration: Callable[[], None] = lambda: None) -> None:
        """Iterate until so many are done, calling `after_iteration` after each."""
        self._progress.done = self.iteration
        with self._progress:
            while self.iteration < max_iterations:
                number = self.iteration + 1
                draws, accept = self.chain.draw(self._num_draws, adapt=number & (number - 1) == 0)
                self.history["complete"].append(self.joint.maximize(draws) / self._rows)
                self.history["accept"].append(accept)
                if number > self._iterations // 2:
                    self._total += self.joint.theta()
                self.iterates.record(number)
                self._progress.advance(number, self.history["complete"][-1], ())
                after_iteration()

    def finish(self) -> Draws:
        """Take over the mean of θ_t; draws (S, …) of the posterior there, one chain."""
        self.joint.set(self._total / (self._iterations - self._iterations // 2))
        return self.chain.draw(self._num_draws, adapt=False)[0]

    # What a resumed run needs

    def tensors(self) -> dict[str, Tensor]:
        """θ, the chain's place, what is kept of the way, and the random generators."""
        found = {"theta": self.joint.theta(), "total": self._total, **random_state()}
        found |= {f"chain/{n}": t for n, t in self.chain.tensors().items()}
        return found | {f"iterates/{n}": t for n, t in self.iterates.tensors().items()}

    def progress(self) -> dict[str, Any]:
        """The rest, as plain data."""
        together = self.joint.together
        return {"history": self.history, "together": together, "chain": self.chain.progress()}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from what `tensors` and `progress` said."""
        self.history, self.joint.together = progress["history"], progress["together"]
        self.joint.set(tensors["theta"])
        self._total = tensors["total"].to(self._total)
        self.chain.load(strip_prefix("chain/", tensors), progress["chain"])
        self.iterates.load(strip_prefix("iterates/", tensors), self.iteration)
        set_random_state(tensors)
