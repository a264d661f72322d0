"""Expectations as finite sums over all K-tuples of draws.

A surrogate is a function of log p and log q at K draws from S states, so its expected gradient is
an exact sum over all Sᴷ tuples:

    E ∇surrogate = Σ_{z_1…z_K} Π_k q(z_k | x) ∇surrogate(z_1…z_K)
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

Surrogate = Callable[[Tensor, Tensor], Tensor]


def tuples(num_states: int, num_particles: int) -> Tensor:
    """Indices of all draws, (K, Sᴷ)."""
    return torch.tensor(list(product(range(num_states), repeat=num_particles))).T


def expectation(surrogate: Surrogate, log_p: Tensor, log_q: Tensor, num_particles: int) -> Tensor:
    """E[surrogate] over the draws, (B,), for tables log p, log q (S, B).

    The probabilities are detached: only the surrogate is differentiated.
    """
    draws = tuples(len(log_q), num_particles)
    probability = log_q[draws].sum(0).exp().detach()  # (Sᴷ, B)
    return (probability * surrogate(log_p[draws], log_q[draws])).sum(0)


def target(bound: Surrogate, log_p: Tensor, log_q: Tensor, num_particles: int) -> Tensor:
    """E[bound], (B,), differentiable through the probabilities too."""
    draws = tuples(len(log_q), num_particles)
    return (log_q[draws].sum(0).exp() * bound(log_p[draws], log_q[draws])).sum(0)


def gradients(value: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Gradient of the sum in one vector; 0 where a parameter has no effect."""
    grads = torch.autograd.grad(value.sum(), list(params), allow_unused=True, retain_graph=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(grads, params, strict=True)
        ]
    )
