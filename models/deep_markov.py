"""Deep Markov model: a nonlinear state-space model with networks.

    z_n1 ~ N(m, diag s²)                                latent    (N, D)
    z_nt ~ N(μ(z_n,t-1), diag σ²(z_n,t-1))              latent    (N, T, D)
    x_nt ~ p(x | decoder(z_nt))                         observed  (N, T, P)

with the likelihoods of `Decoder` and a gated transition,

    g = gate(z),  h = proposal(z),  μ(z) = (1 - g) ⊙ (A z + b) + g ⊙ h,  σ(z) = softplus(spread(h)),

so that the state moves linearly where the gate is closed. All steps are one site "z" with event
(T, D), whose density is that of a chain. A training step evaluates T steps at once, since the
guide draws all states. Only sampling from the model itself is sequential.

A missing value is NaN and is left out of the likelihood. A short sequence is padded with NaN at its
end, where its states follow the prior.

Reference:
    Krishnan, Shalit, Sontag (2017). Structured inference networks for nonlinear state space
    models. https://arxiv.org/abs/1609.09869 (the gated transition: section 5)
"""

import math
from typing import Any

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_sequences
from ppl_lvm.models.parts.row_checks import mean_imputed
from ppl_lvm.models.parts.state_space.sequences import (
    check_sequence_shape,
    check_several_steps,
    seen_steps,
)
from ppl_lvm.nn import MLP


class DeepMarkovModel(PyroModule):
    """D Markovian states that explain sequences of P columns.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the decoder's hidden layers.
        width: of the transition's hidden layer.
        likelihood, categories, floor: see `Decoder`.
    """

    example_batch = staticmethod(example_sequences)

    start: Tensor  # m (D,)
    start_scale: Tensor  # s (D,)

    def __init__(
        self,
        latent: Count = 4,
        observed: Count | None = None,
        hidden: tuple[Count, ...] = (64,),
        width: Count = 32,
        likelihood: str = "gaussian",
        categories: Count | None = None,
        floor: Positive = 1e-4,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.observed = observed
        self.hidden = tuple(hidden)
        self.width = width
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.decoder = Decoder(latent, observed, hidden, likelihood, categories, floor)
        self.transition = PyroModule[Transition](latent, width)
        self.start = nn.Parameter(torch.zeros(latent))
        self.start_scale = PyroParam(torch.ones(latent), constraints.positive)

    def forward(self, x: Tensor) -> None:
        """Sequences `x` (N, T, P); NaN where a value is missing."""
        self._infer_sizes(x)
        present = ~x.isnan()
        with pyro.plate("data", len(x), dim=-1):
            chain = MarkovNormal(self.start, self.start_scale, self.transition, x.shape[1])
            z = pyro.sample("z", chain)  # (N, T, D)
            emission = self.decoder(z).base_dist.mask(present).to_event(2)
            pyro.sample("x", emission, obs=x.nan_to_num(0.0))

    def decode(self, z: Tensor) -> Tensor:
        """Means of x at states `z` (..., T, D); see `Decoder.mean`."""
        return self.decoder.mean(z)

    def initialize(self, x: Tensor) -> None:
        """Set P and the columns' means and standard deviation from sequences `x` (N, T, P).

        Raises:
            ValueError: for sequences of one step; see `Decoder.initialize`.
        """
        self._infer_sizes(x)
        check_several_steps(x, "DeepMarkovModel")
        self.decoder.initialize(mean_imputed(seen_steps(x)), self)

    def _infer_sizes(self, x: Tensor) -> None:
        check_sequence_shape(x, self.decoder.observed, type(self).__name__)
        self.decoder.infer_sizes(x.flatten(0, 1), owner=self)


class Transition(nn.Module):
    """μ(z) and σ(z) of the next state, each (..., D)."""

    def __init__(self, latent: Count, width: Count) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, latent)
        self.gate = MLP(latent, latent, (width,))
        self.proposal = MLP(latent, latent, (width,))
        self.spread = nn.Linear(latent, latent)
        with torch.no_grad():  # initially z_t ~ N(z_t-1, 0.5²)
            self.linear.weight.copy_(torch.eye(latent))
            self.linear.bias.zero_()
            self.spread.bias.fill_(math.log(math.expm1(0.5)))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        g, h = self.gate(z).sigmoid(), self.proposal(z)
        return (1 - g) * self.linear(z) + g * h, softplus(self.spread(h.relu())) + 1e-4


class MarkovNormal(TorchDistribution):
    """A chain z_1, …, z_T of normals as one distribution with event (T, D).

        log p(z) = log N(z_1; m, s²) + Σ_t log N(z_t; μ(z_{t-1}), σ²(z_{t-1}))

    Args:
        start, start_scale: m and s (..., D).
        transition: maps a state to μ and σ of the next one.
        steps: T.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        start: Tensor,
        start_scale: Tensor,
        transition: Any,
        steps: Count,
        batch_shape: Any = (),
    ) -> None:
        self._chain = (start, start_scale, transition, steps)
        shape = torch.Size((steps, start.shape[-1]))
        super().__init__(torch.Size(batch_shape), shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MarkovNormal":
        """The same chain for more data."""
        return MarkovNormal(*self._chain, batch_shape=batch_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw the steps one after the other."""
        start, scale, transition, steps = self._chain
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=start.dtype, device=start.device)
        states = [start + scale * noise[..., 0, :]]
        for t in range(1, steps):
            mean, scale = transition(states[-1])
            states.append(mean + scale * noise[..., t, :])
        return torch.stack(states, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        """All steps at once."""
        start, start_scale, transition, _ = self._chain
        mean, scale = transition(value[..., :-1, :])
        first = Normal(start, start_scale).log_prob(value[..., 0, :]).sum(-1)
        result: Tensor = first + Normal(mean, scale).log_prob(value[..., 1:, :]).sum((-1, -2))
        return result
