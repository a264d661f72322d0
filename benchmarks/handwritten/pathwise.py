"""Bounds and their pathwise gradients: z carries its gradient, the bound is differentiated.

Every function takes log p(x, z_k) and log q(z_k | x), (K, B), and returns what to maximize, (B,);
w_k = p / q, w̄ = softmax(log w), K particles in dimension 0. "Still" means computed from
parameters that are detached, so that only z carries gradient.

    elbo        1/K Σ_k log w_k
    iwae        log 1/K Σ_k w_k
    renyi       1/(1-α) log 1/K Σ_k w_k^(1-α)
    vr_max      max_k log w_k
    stl         the ELBO, log q still: Roeder, Wu, Duvenaud 2017, https://arxiv.org/abs/1703.09194
    dreg        IWAE's gradient, Σ_k w̄_k² ∂log w_k/∂z_k for the guide
    dreg_renyi  Rényi's, Σ_k (α w̄_k + (1-α) w̄_k²) ∂log w_k/∂z_k

References:
    Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519
    Li, Turner (2016). Rényi divergence variational inference. https://arxiv.org/abs/1602.02311
    Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators.
    https://arxiv.org/abs/1810.04152
"""

import math

from torch import Tensor


def elbo(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p - log_q).mean(0)


def iwae(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p - log_q).logsumexp(0) - math.log(len(log_p))


def renyi(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    power = 1 - alpha
    return ((power * (log_p - log_q)).logsumexp(0) - math.log(len(log_p))) / power


def vr_max(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p - log_q).max(0).values


def stl(log_p: Tensor, log_q_at_fixed_parameters: Tensor) -> Tensor:
    return (log_p - log_q_at_fixed_parameters).mean(0)


def dreg(z: Tensor, log_p: Tensor, log_q_at_fixed_parameters: Tensor) -> Tensor:
    """The model gets w̄; the hook on z (K, B, D) makes it w̄² for the guide. One layer only."""
    return dreg_renyi(z, log_p, log_q_at_fixed_parameters, alpha=0.0)


def dreg_renyi(z: Tensor, log_p: Tensor, log_q_at_fixed_parameters: Tensor, alpha: float) -> Tensor:
    log_w = log_p - log_q_at_fixed_parameters
    w = ((1 - alpha) * log_w).detach().softmax(0)  # (K, B)
    z.register_hook(lambda gradient: (alpha + (1 - alpha) * w).unsqueeze(-1) * gradient)
    return (w * log_w).sum(0)
