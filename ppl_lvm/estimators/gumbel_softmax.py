"""Gumbel-softmax (Concrete) relaxation of discrete draws.

With logits φ, Gumbel noise g and temperature τ, a one-hot draw becomes a point of the simplex,

    y = softmax((φ + g) / τ)          (a bit: y = σ((φ + logit u) / τ)),

in guide and model, and both densities become those of the Concrete distribution:

    E_y[log p_τ(x, y) - log q_τ(y | x)],

the ELBO of a relaxed model. Its pathwise gradient is unbiased for this objective. For the discrete
ELBO it is biased: the bias falls with τ, the variance grows with 1/τ. The value is no bound for the
discrete model. The model must be differentiable on the simplex: comparisons, indices and rounding
are rejected, and so are Categorical sites, whose values are indices.

References:
    Jang, Gu, Poole (2017). Categorical reparameterization with Gumbel-softmax.
    https://arxiv.org/abs/1611.01144
    Maddison, Mnih, Teh (2017). The Concrete distribution. https://arxiv.org/abs/1611.00712
"""

from typing import Any

import torch
from pyro.distributions import RelaxedBernoulli, RelaxedOneHotCategorical
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.core.distributions import elementary, with_innermost
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import PairStructure, Particles


class ConcreteDraws(Messenger):
    """Replace these sites' distributions, in guide and model, by Concrete distributions."""

    def __init__(self, sites: tuple[str, ...], temperature: Positive) -> None:
        super().__init__()
        self.sites = sites
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.sites or msg["is_observed"]:
            return
        fn = msg["fn"]
        base = elementary(fn)
        tau = torch.as_tensor(self.temperature, dtype=base.logits.dtype, device=base.logits.device)
        one_hot = len(base.event_shape) == 1
        relaxed = RelaxedOneHotCategorical if one_hot else RelaxedBernoulli
        msg["fn"] = with_innermost(fn, relaxed(tau, logits=base.logits))


class GumbelSoftmax(Estimator):
    """The relaxed ELBO with pathwise gradients.

    Args:
        num_particles: K.
        temperature: τ, positive.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "relaxed ELBO"
    unbiased = False
    is_linear = True
    requires = "discrete"
    fallback = "LeaveOneOut"
    sampling = "relaxed"
    paper = "Jang, Gu, Poole (2017). https://arxiv.org/abs/1611.01144"

    def __init__(
        self,
        num_particles: Count = 1,
        temperature: Positive = 0.5,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not temperature > 0:
            raise ValueError(f"GumbelSoftmax needs a positive temperature, got {temperature}.")
        self.temperature = temperature

    @property
    def is_bound(self) -> bool:
        return False

    def draw_handler(self, structure: PairStructure) -> Messenger:
        return ConcreteDraws(structure.score_sites, self.temperature)

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        return self.bound(particles)
