"""Biased pathwise gradients through relaxed or rounded discrete draws.

    concrete          bits    y = σ((φ + logit u) / τ)         the relaxed objective's own gradient
    gumbel_softmax    simplex y = softmax((φ + g) / τ)         likewise
    straight_through  forward the rounded draw, backward the relaxed one, or the mean σ(φ)

The law of a relaxed bit has a density,

    log q_τ(y | φ) = log τ + λ - 2 log(1 + exp λ) - log y (1 - y),     λ = φ - τ logit y.

At temperature τ → 0 the first two tend to the discrete draw, with a variance that tends to ∞.

References:
    Jang, Gu, Poole (2017). https://arxiv.org/abs/1611.01144
    Maddison, Mnih, Teh (2017). https://arxiv.org/abs/1611.00712
    Bengio, Léonard, Courville (2013). https://arxiv.org/abs/1308.3432
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from ppl_lvm.benchmarks.handwritten.binary import logit


def concrete(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Relaxed bits in (0, 1), shaped as the logits and the uniform noise u."""
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
    """Forward the bits, backward `soft`: the relaxed bits that they round, or their means."""
    return bits + soft - soft.detach()


def straight_through(soft: Tensor) -> Tensor:
    """Forward the one-hot of the largest entry, backward the identity."""
    hard = one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + soft - torch.as_tensor(soft).detach()
