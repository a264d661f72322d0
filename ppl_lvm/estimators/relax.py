"""RELAX: score function gradients with a learned control variate, for Bernoulli draws.

The control variate is REBAR's plus a network,

    c(z) = η f(σ(z / τ)) + r_ψ(z),     f = log p(x, ·) - log q(· | x),

in the gradient of `control_variate`: unbiased for every η, τ and ψ, which descend the gradient's
variance. r_ψ sees the relaxed bits of a datum. The model must accept bits between 0 and 1 (not
checked); with `relax_model=False` c is the network alone and it need not.

Reference:
    Grathwohl, Choi, Wu, Roeder, Duvenaud (2018). Backpropagation through the void: optimizing
    control variates for black-box gradient estimation. https://arxiv.org/abs/1711.00123
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.control_variate import logit_gradient, relaxed_log_weight, surrogate
from ppl_lvm.estimators.parts.relaxed_bernoulli import RelaxedBernoulli
from ppl_lvm.particles import Particles, draw_particles
from ppl_lvm.particles.structure import Program


class RELAX(Estimator):
    """The evidence lower bound with RELAX gradients of one Bernoulli site.

    Args:
        num_particles: K.
        hidden: width of the network's one hidden layer.
        temperature: τ at the start, positive; learned.
        relax_model: whether c has REBAR's term, the bound at relaxed bits.
        vectorize_particles: run particles in one pass; by default where the program allows it.
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
        num_particles: int = 1,
        hidden: int = 16,
        temperature: float = 0.5,
        relax_model: bool = True,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not temperature > 0:
            raise ValueError(f"RELAX needs a positive temperature, got {temperature}.")
        self.relax_model = relax_model
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_tau = nn.Parameter(torch.tensor(math.log(temperature)))
        with warnings.catch_warnings():  # LazyLinear announces that it is new
            warnings.simplefilter("ignore", UserWarning)
            self.network = nn.Sequential(nn.LazyLinear(hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def draw(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Particles:
        plan = self.plan(model, guide, args, kwargs)
        drawn = RelaxedBernoulli(plan)
        particles = draw_particles(
            model, guide, args, kwargs, plan, self.num_particles, drawing=drawn
        )
        particles.extras = {"relaxed": drawn}
        return particles

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        drawn: RelaxedBernoulli = particles.extras["relaxed"]

        def control(z: Tensor) -> Tensor:
            r: Tensor = self.network(drawn.per_row(z)).squeeze(-1)  # (K, B)
            if not self.relax_model:
                return r
            f = relaxed_log_weight(particles, drawn.name, z, self.log_tau.exp())
            return self.eta * f + r

        g, phi = logit_gradient(drawn, particles.log_w, control)
        learned = list(self.parameters()) if self.training else []
        return surrogate(particles, drawn, g, phi, learned)
