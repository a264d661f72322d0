"""Straight-through gradients of discrete draws.

The forward pass has a discrete draw b, the backward pass a smooth function of the logits φ,

    b + (y - sg y),     y = σ(φ) or softmax(φ)                  without a temperature,
                        y = the Gumbel-softmax draw at τ        with one (b is its arg max),

and densities interpolate linearly between the corners of the simplex. The value is the ELBO. The
gradient is exact without a temperature if bits are independent and log p(x, b) - log q(b) is linear
in each. Otherwise it is biased at every temperature. The model must be differentiable on
the simplex: comparisons, indices and rounding are rejected, and so are Categorical sites, whose
values are indices.

References:
    Bengio, Léonard, Courville (2013). Estimating or propagating gradients through stochastic
    neurons for conditional computation. https://arxiv.org/abs/1308.3432
    Jang, Gu, Poole (2017). Categorical reparameterization with Gumbel-softmax (section 2.2).
    https://arxiv.org/abs/1611.01144
"""

from typing import Any

import torch
from pyro.distributions import OneHotCategorical
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.core.distributions import elementary, with_innermost
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import PairStructure, Particles


class _LinearOneHot(OneHotCategorical):
    """One-hot distribution whose density is differentiable in the value."""

    def log_prob(self, value: Tensor) -> Tensor:
        return (value * self.logits).sum(-1)


class StraightThroughDraws(Messenger):
    """Draw these sites of the guide with straight-through gradients; score them linearly."""

    def __init__(self, sites: tuple[str, ...], temperature: Positive | None) -> None:
        super().__init__()
        self.sites = sites
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.sites or msg["is_observed"]:
            return
        base = elementary(msg["fn"])
        if len(base.event_shape) == 1:
            msg["fn"] = with_innermost(msg["fn"], _LinearOneHot(logits=base.logits))
        if msg["done"]:
            return
        hard, soft = self._draw(base)
        msg["value"] = hard + (soft - soft.detach())
        msg["done"] = True

    def _draw(self, base: Any) -> tuple[Tensor, Tensor]:
        """(b, y) of a Bernoulli or one-hot distribution."""
        logits = base.logits
        one_hot = len(base.event_shape) == 1
        if self.temperature is None:
            return base.sample(), logits.softmax(-1) if one_hot else logits.sigmoid()
        eps = torch.finfo(logits.dtype).eps
        u = torch.rand_like(logits).clamp(eps, 1 - eps)
        if not one_hot:
            z = logits + u.logit()
            return (z > 0).to(logits), (z / self.temperature).sigmoid()
        z = logits - (-u.log()).log()
        hard = torch.zeros_like(logits).scatter(-1, z.argmax(-1, keepdim=True), 1.0)
        return hard, (z / self.temperature).softmax(-1)


class StraightThrough(Estimator):
    """The ELBO with straight-through gradients.

    Args:
        num_particles: K.
        temperature: τ of the Gumbel-softmax draw y; None for the mean y = σ(φ) or softmax(φ).
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = False
    is_linear = True
    requires = "discrete"
    fallback = "LeaveOneOut"
    sampling = "straight-through"
    paper = "Bengio, Léonard, Courville (2013). https://arxiv.org/abs/1308.3432"

    def __init__(
        self,
        num_particles: Count = 1,
        temperature: Positive | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if temperature is not None and not temperature > 0:
            raise ValueError(
                f"StraightThrough needs a positive temperature or None, got {temperature}."
            )
        self.temperature = temperature

    def draw_handler(self, structure: PairStructure) -> Messenger:
        return StraightThroughDraws(structure.score_sites, self.temperature)

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        return self.bound(particles)
