"""REBAR: score-function gradients with a relaxed control variate.

For Bernoulli draws. The control variate is the log-weight at relaxed bits,

    c(z) = η f(σ(z / τ)),     f = log p(x, ·) - log q(· | x),

in the gradient of `parts/control_variate.py`, which is unbiased for every η and τ. Both descend the
gradient's variance. The model must be differentiable in bits between 0 and 1: comparisons, indices
and rounding are rejected.

Reference:
    Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein (2017). REBAR: low-variance, unbiased gradient
    estimates for discrete latent variable models. https://arxiv.org/abs/1703.07370
    (η and τ are scalars; the paper has one η per layer.)
"""

import math

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.control_variate import logit_gradient, relaxed_log_weight, surrogate
from ppl_lvm.estimators.parts.relaxed_bernoulli import RelaxedBernoulli
from ppl_lvm.particles import PairStructure, Particles


class REBAR(Estimator):
    """The ELBO with REBAR gradients of one Bernoulli site.

    Args:
        num_particles: K.
        temperature: initial τ, positive; learned.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    requires = "bernoulli"
    fallback = "LeaveOneOut"
    sampling = "relaxed pair"
    cost = "3 K"
    paper = "Tucker et al. (2017). https://arxiv.org/abs/1703.07370"

    def __init__(
        self,
        num_particles: Count = 1,
        temperature: Positive = 0.5,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not temperature > 0:
            raise ValueError(f"REBAR needs a positive temperature, got {temperature}.")
        self.temperature = temperature
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_tau = nn.Parameter(torch.tensor(math.log(temperature)))

    def draw_handler(self, structure: PairStructure) -> Messenger:
        return RelaxedBernoulli(structure)

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        relaxed: RelaxedBernoulli = particles.drawing

        def control(z: Tensor) -> Tensor:
            f = relaxed_log_weight(particles, relaxed.name, z, self.log_tau.exp())
            return self.eta * f  # (K, B)

        g, phi = logit_gradient(relaxed, particles.log_w, control)
        learned = [self.eta, self.log_tau] if self.training else []
        return surrogate(particles, relaxed, g, phi, learned)
