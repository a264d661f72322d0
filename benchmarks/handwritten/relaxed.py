"""Biased pathwise gradients through relaxed or rounded discrete draws.

    concrete          bits    σ((φ + logit u) / τ)             the relaxed objective's own gradient
    gumbel_softmax    simplex softmax((φ + g) / τ)             likewise
    straight_through  forward the rounded draw, backward the relaxed one

At temperature τ → 0 the first two tend to the discrete draw, with a variance that tends to ∞.

References:
    Jang, Gu, Poole (2017). https://arxiv.org/abs/1611.01144
    Maddison, Mnih, Teh (2017). https://arxiv.org/abs/1611.00712
    Bengio, Léonard, Courville (2013). https://arxiv.org/abs/1308.3432
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_lvm.benchmarks.handwritten.binary import logit


def concrete(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Relaxed bits in (0, 1), shaped as the logits and the uniform noise u."""
    return ((logits + logit(u)) / temperature).sigmoid()


def gumbel_softmax(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Relaxed one-hot vectors over the last dimension."""
    gumbel = -(-u.log()).log()
    return ((logits + gumbel) / temperature).softmax(-1)


def straight_through_bits(soft: Tensor) -> Tensor:
    """Forward 1[soft > ½], backward the identity."""
    return (soft > 0.5).to(soft) + soft - soft.detach()


def straight_through(soft: Tensor) -> Tensor:
    """Forward the one-hot of the largest entry, backward the identity."""
    hard = one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + soft - torch.as_tensor(soft).detach()
