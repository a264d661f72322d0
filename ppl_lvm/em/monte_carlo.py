"""Monte-Carlo EM: the E-step by Markov chains, the M-step by gradient.

For a model whose posterior p(z | x, θ) has no closed form. With draws z_1 … z_S of a chain (NUTS)
that leaves it invariant,

    Q_t(θ) = 1/S Σ_s log p(x, z_s | θ),    θ_{t+1} = argmax Q_t  (L-BFGS, from θ_t),

and the result is the mean of θ_t (unconstrained) over the second half of the iterations, in which
the error of S draws averages out. It is maximum likelihood: what variational inference only
bounds, up to the noise of the draws. No likelihood falls out of it; estimate one by
`ppl_lvm.fit` of a guide, or by quadrature where z has few dimensions.

The chain goes on where it stopped. Step size and mass matrix are adapted at iterations 1, 2, 4,
8, …, since θ moves less and less.

References:
    Wei, Tanner (1990). A Monte Carlo implementation of the EM algorithm and the poor man's data
    augmentation algorithms. https://doi.org/10.1080/01621459.1990.10474930
    Hoffman, Gelman (2014). The no-U-turn sampler. https://arxiv.org/abs/1111.4246
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn

from ppl_lvm.data import Data, load_data
from ppl_lvm.pair import copied, latent_sites, plate_nesting
from ppl_lvm.programs import ModelSource

Draws = dict[str, Tensor]


@dataclass
class MonteCarloEM:
    """What `fit_mcem` leaves behind.

    Attributes:
        model: the fitted model, a copy.
        draws: latent site -> (S, …) of its posterior at the end, one chain.
        history: "complete" (Q_t at its maximum, nats per datum) and "accept" (the chain's mean
            acceptance probability) of every iteration.
        path: (T, number of parameters) unconstrained θ_t of every iteration.
    """

    model: Any
    draws: Draws
    history: dict[str, list[float]]
    path: Tensor

    def parameters(self) -> dict[str, Tensor]:
        """Name -> constrained value, detached."""
        named = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        plain = {name.removesuffix("_unconstrained"): name for name in named}
        return {
            short: getattr(self.model, short).detach().clone() if short != name else named[name]
            for short, name in plain.items()
        }


def fit_mcem(
    model: Any,
    data: Any,
    *,
    iterations: int = 40,
    num_draws: int = 20,
    warmup: int = 50,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> MonteCarloEM:
    """Fit a model by Monte-Carlo EM. Works on a copy of the model.

    Args:
        model: a module whose latents are continuous and whose parameters are `nn.Parameter` or
            `PyroParam`; a class of such, or its address.
        data: see `load_data`; all rows are used at every iteration.
        iterations: T. The result is the mean over the second half of them.
        num_draws: S, draws of the chain an iteration.
        warmup: steps of the chain in which it adapts, each time.
        seed: of every random number.
        settings: arguments for a model given as a class or an address.

    Raises:
        ValueError: no parameters, no latents, discrete latents, or an option makes no sense.
    """
    given = {"iterations": iterations, "num_draws": num_draws, "warmup": warmup}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    rows = data if isinstance(data, Data) else load_data(data)
    batch = rows.batch(torch.arange(len(rows)))
    pyro.set_rng_seed(seed)
    source = ModelSource(model if isinstance(model, str) else copied(model)[0], settings)
    with pyro.get_param_store().scope():
        made: Any = source.make(batch)
        joint = _Joint(made, batch)
        chain = _Chain(made, batch, warmup)
        history: dict[str, list[float]] = {"complete": [], "accept": []}
        path = []
        for iteration in range(1, iterations + 1):
            draws, accept = chain.draw(num_draws, adapt=iteration & (iteration - 1) == 0)
            history["complete"].append(joint.maximize(draws) / len(rows))
            history["accept"].append(accept)
            path.append(joint.theta())
        kept = torch.stack(path)
        joint.set(kept[iterations // 2 :].mean(0))
        draws, _ = chain.draw(num_draws, adapt=False)
    return MonteCarloEM(made, draws, history, kept)


class _Joint:
    """Q(θ) of a model, and its maximum."""

    def __init__(self, model: Any, batch: tuple[Tensor, ...]) -> None:
        self.model, self.batch = model, batch
        self.leaves = [p for p in model.parameters() if p.requires_grad] if _module(model) else []
        if not self.leaves:
            raise ValueError(
                f"{type(model).__name__} has no parameters to fit. Give them as nn.Parameter or "
                "PyroParam; for a posterior alone use pyro.infer.MCMC."
            )
        with poutine.block(), torch.no_grad():
            trace = poutine.trace(model).get_trace(*batch)
        latents = latent_sites(trace)
        if not latents:
            raise ValueError("The model has no latents: maximise its likelihood directly.")
        for name, site in latents.items():
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"{name!r} is discrete, which NUTS does not draw. Sum it out in the model, or "
                    "use EM or a gradient objective that does."
                )
        self._dim = -1 - plate_nesting(trace)
        self._together: bool | None = None

    def theta(self) -> Tensor:
        """θ, unconstrained, in one vector."""
        return torch.cat([leaf.detach().flatten() for leaf in self.leaves])

    def set(self, theta: Tensor) -> None:
        """Take θ over."""
        with torch.no_grad():
            for leaf, part in zip(
                self.leaves, theta.split([p.numel() for p in self.leaves]), strict=True
            ):
                leaf.copy_(part.reshape(leaf.shape))

    def maximize(self, draws: Draws) -> float:
        """Move θ to the maximum of Q, in nats over all rows; returns it."""
        optimizer = torch.optim.LBFGS(self.leaves, max_iter=20, line_search_fn="strong_wolfe")
        N = len(self.batch[0])

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = -self._q(draws) / N
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        with torch.no_grad():
            return float(self._q(draws))

    def _q(self, draws: Draws) -> Tensor:
        S = len(next(iter(draws.values())))
        if self._together is None:  # once: does the model take a leading dimension of draws?
            with torch.no_grad():
                alone: Any = sum(
                    self._log_joint({k: v[s] for k, v in draws.items()}) for s in range(S)
                )
                try:
                    with pyro.plate("draws", S, dim=self._dim):
                        both = self._log_joint(self._spread(draws))
                    self._together = bool(torch.allclose(both, alone, rtol=1e-4))
                except (RuntimeError, ValueError, IndexError):
                    self._together = False
        if self._together:
            with pyro.plate("draws", S, dim=self._dim):
                return self._log_joint(self._spread(draws)) / S
        total: Any = sum(self._log_joint({k: v[s] for k, v in draws.items()}) for s in range(S))
        q: Tensor = total / S
        return q

    def _spread(self, draws: Draws) -> Draws:
        """Draws (S, batch, event) with S at the place of the plate "draws"."""
        with poutine.block(), torch.no_grad():
            trace = poutine.trace(
                poutine.condition(self.model, {k: v[0] for k, v in draws.items()})
            )
            nodes = trace.get_trace(*self.batch).nodes
        found = {}
        for name, value in draws.items():
            event = nodes[name]["fn"].event_dim
            missing = -self._dim - (value.dim() - event)  # dimensions between S and the batch
            found[name] = value.reshape(len(value), *[1] * missing, *value.shape[1:])
        return found

    def _log_joint(self, values: Draws) -> Tensor:
        with poutine.block():
            model = poutine.condition(self.model, values)
            total: Tensor = poutine.trace(model).get_trace(*self.batch).log_prob_sum()
        return total


class _Chain:
    """A chain of draws from p(z | x, θ) at the model's present θ."""

    def __init__(self, model: Any, batch: tuple[Tensor, ...], warmup: int) -> None:
        self._model, self._batch, self._warmup = model, batch, warmup
        with _still(model):
            state, self._potential, self._transforms, _ = initialize_model(model, batch)
        self._state: Draws = state
        self._kernel: Any = None

    def draw(self, count: int, *, adapt: bool) -> tuple[Draws, float]:
        """`count` draws (S, …) by site, and the mean acceptance probability."""
        with _still(self._model), poutine.block():
            if adapt or self._kernel is None:
                step_size = 0.1 if self._kernel is None else self._kernel.step_size
                self._kernel = NUTS(
                    potential_fn=self._potential, step_size=step_size, max_tree_depth=6
                )
                self._kernel.initial_params = self._state
                self._kernel.setup(self._warmup)
                for _ in range(self._warmup):
                    self._state = self._kernel.sample(self._state)
                self._kernel.end_warmup()
            self._kernel.clear_cache()  # the potential has changed with θ
            states = []
            for _ in range(count):
                self._state = self._kernel.sample(self._state)
                states.append(self._state)
        draws = {name: torch.stack([s[name] for s in states]).detach() for name in self._state}
        draws = {name: self._transforms[name].inv(t) for name, t in draws.items()}
        return draws, float(self._kernel._mean_accept_prob)


@contextmanager
def _still(model: Any) -> Iterator[None]:
    """Inside, the parameters take no gradients: they are data to the chain."""
    leaves = [p for p in model.parameters() if p.requires_grad]
    for leaf in leaves:
        leaf.requires_grad_(False)
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)


def _module(model: Callable[..., Any]) -> bool:
    return isinstance(model, nn.Module)
