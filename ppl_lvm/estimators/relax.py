"""RELAX: score-function gradients with a learned control variate.

For Bernoulli draws. The control variate is REBAR's plus a network,

    c(z) = η f(σ(z / τ)) + r_ψ(z),     f = log p(x, ·) - log q(· | x),

in the gradient of `parts/control_variate.py`, which is unbiased for every η, τ and ψ. All descend
the gradient's variance. The input of r_ψ is the relaxed bits of a row. The model must be
differentiable in bits between 0 and 1 (comparisons, indices and rounding are rejected), except with
`relax_model=False`, where c is the network alone.

Reference:
    Grathwohl, Choi, Wu, Roeder, Duvenaud (2018). Backpropagation through the void: optimizing
    control variates for black-box gradient estimation. https://arxiv.org/abs/1711.00123
"""

import math
import warnings

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.control_variate import logit_gradient, relaxed_log_weight, surrogate
from ppl_lvm.estimators.parts.relaxed_bernoulli import RelaxedBernoulli
from ppl_lvm.particles import PairStructure, Particles


class RELAX(Estimator):
    """The ELBO with RELAX gradients of one Bernoulli site.

    Args:
        num_particles: K.
        hidden: width of the hidden layer.
        temperature: initial τ, positive; learned.
        relax_model: c includes REBAR's term, the log-weight at relaxed bits.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    requires = "bernoulli"
    fallback = "LeaveOneOut"
    sampling = "relaxed pair"
    cost = "3 K"
    paper = "Grathwohl et al. (2018). https://arxiv.org/abs/1711.00123"

    def __init__(
        self,
        num_particles: Count = 1,
        hidden: Count = 16,
        temperature: Positive = 0.5,
        relax_model: bool = True,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not temperature > 0:
            raise ValueError(f"RELAX needs a positive temperature, got {temperature}.")
        self.hidden, self.temperature, self.relax_model = hidden, temperature, relax_model
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_tau = nn.Parameter(torch.tensor(math.log(temperature)))
        with warnings.catch_warnings():  # LazyLinear warns that it is a new feature
            warnings.simplefilter("ignore", UserWarning)
            self.network = nn.Sequential(nn.LazyLinear(hidden), nn.Tanh(), nn.Linear(hidden, 1))

    @property
    def relaxes_programs(self) -> bool:
        return self.relax_model

    def draw_handler(self, structure: PairStructure) -> Messenger:
        return RelaxedBernoulli(structure)

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        relaxed: RelaxedBernoulli = particles.drawing

        def control(z: Tensor) -> Tensor:
            r: Tensor = self.network(relaxed.per_row(z)).squeeze(-1)  # (K, B)
            if not self.relax_model:
                return r
            f = relaxed_log_weight(particles, relaxed.name, z, self.log_tau.exp())
            return self.eta * f + r

        g, phi = logit_gradient(relaxed, particles.log_w, control)
        learned = list(self.parameters()) if self.training else []
        return surrogate(particles, relaxed, g, phi, learned)
