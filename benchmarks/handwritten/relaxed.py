"""Biased pathwise gradients through relaxed or rounded discrete draws.

    concrete          bits    y = σ((φ + logit u) / τ)         the gradient of the relaxed objective
    gumbel_softmax    simplex y = softmax((φ + g) / τ)         likewise
    straight_through  forward the rounded draw, backward the relaxed one, or the mean σ(φ)

The density of a relaxed bit is

    log q_τ(y | φ) = log τ + λ - 2 log(1 + exp λ) - log y (1 - y),     λ = φ - τ logit y.

For τ → 0 the first two converge to the discrete draw, with a variance that diverges.

References:
    Jang, Gu, Poole (2017). https://arxiv.org/abs/1611.01144
    Maddison, Mnih, Teh (2017). https://arxiv.org/abs/1611.00712
    Bengio, Léonard, Courville (2013). https://arxiv.org/abs/1308.3432
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from ppl_lvm.benchmarks.handwritten import belief_net
from ppl_lvm.benchmarks.handwritten.binary import logit, uniform_noise
from ppl_lvm.benchmarks.handwritten.twins import Params, Twin


def concrete(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Relaxed bits in (0, 1), in the shape of the logits and the uniform noise u."""
    return ((logits + logit(u)) / temperature).sigmoid()


def log_concrete(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """log q_τ of relaxed bits, summed over the last dimension."""
    odds = logits - temperature * logit(soft)
    log_jacobian = soft.log() + (-soft).log1p()
    return (math.log(temperature) + odds - 2 * softplus(odds) - log_jacobian).sum(-1)


def gumbel_softmax(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Relaxed one-hot vectors over the last dimension."""
    gumbel = -(-u.log()).log()
    return ((logits + gumbel) / temperature).softmax(-1)


def straight_through_bits(bits: Tensor, soft: Tensor) -> Tensor:
    """Forward the bits, backward `soft`: relaxed bits or means."""
    return bits + soft - soft.detach()


def straight_through(soft: Tensor) -> Tensor:
    """Forward the one-hot of the largest entry, backward the identity."""
    hard = one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + soft - torch.as_tensor(soft).detach()


TEMPERATURE = 0.5


def twins(program: str, params: Params, num_particles: int) -> Iterator[Twin]:
    """Gumbel-softmax and straight-through on the belief net."""
    if program != "belief_net":
        return

    def gumbel(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, u = uniform_noise(params, x, num_particles)
        soft = concrete(logits, u[0], TEMPERATURE)
        log_prior = log_concrete(params["model.prior"], soft, TEMPERATURE)
        log_q = log_concrete(logits, soft, TEMPERATURE)
        value = (log_prior + belief_net.log_likelihood(params, x, soft) - log_q).mean(0)
        return value, value

    def straight(x: Tensor) -> tuple[Tensor, Tensor]:
        bits = belief_net.draw(params, x, num_particles)
        z = straight_through_bits(bits, belief_net.guide_logits(params, x).sigmoid())
        value = (belief_net.log_p(params, x, z) - belief_net.log_q(params, x, z)).mean(0)
        return value, value

    yield Twin("GumbelSoftmax", gumbel)
    yield Twin("StraightThrough", straight)
