"""Score-function gradients: z carries no gradient, log q does.

Every function takes log p(x, z_k) and log q(z_k | x), (K, B), and returns what to maximize, (B,);
w_k = p / q, K particles in dimension 0.

    reinforce   1/K Σ_k (log w_k - b) ∇log q_k + ∇log p_k          b = 0, or given
    rloo        the same with b_k the mean of the others' log w
    vimco       Σ_k (L - L_{-k}) ∇log q_k + ∇L, L = log 1/K Σ w, slot k of L_{-k} filled by
                the geometric mean of the others
    renyi       vimco's form, L = 1/(1-α) log 1/K Σ w^(1-α)
    vr_max      vimco's form, L = max_k log w_k
    mixed       vimco's form for guides in which only some sites need the score
    nvil        reinforce with a baseline that is trained by least squares beside it

References:
    Mnih, Gregor (2014). Neural variational inference and learning. https://arxiv.org/abs/1402.0030
    Mnih, Rezende (2016). Variational inference for Monte Carlo objectives.
    https://arxiv.org/abs/1602.06725
    Kool, van Hoof, Welling (2019). Buy 4 REINFORCE samples, get a baseline for free!
    https://openreview.net/forum?id=r1lgTGL5DE
"""

import math

import torch
from torch import Tensor


def reinforce(log_p: Tensor, log_q: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    signal = (log_p - log_q).detach() - baseline
    return (signal * log_q + log_p).mean(0)


def rloo(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_w = (log_p - log_q).detach()
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    return ((log_w - others) * log_q + log_p).mean(0)


def leave_one_out(log_w: Tensor) -> Tensor:
    """(K, K, B): row k is log_w with its own entry replaced by the mean of the others."""
    K = len(log_w)
    others = (log_w.sum(0) - log_w) / (K - 1)
    own = torch.eye(K, dtype=torch.bool).view(K, K, *[1] * (log_w.dim() - 1))
    return torch.where(own, others.unsqueeze(1), log_w.unsqueeze(0))


def log_mean_exp(log_w: Tensor, power: float, dim: int) -> Tensor:
    return ((power * log_w).logsumexp(dim) - math.log(log_w.shape[dim])) / power


def vimco(log_p: Tensor, log_q: Tensor) -> Tensor:
    return renyi(log_p, log_q, alpha=0.0)


def renyi(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    return mixed(log_p, log_q, log_q, alpha)


def vr_max(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_w = log_p - log_q
    without = leave_one_out(log_w.detach()).max(1).values  # (K, B)
    bound = log_w.max(0).values
    return bound + ((bound.detach() - without) * log_q).sum(0)


def mixed(log_p: Tensor, log_q: Tensor, log_q_score: Tensor, alpha: float = 0.0) -> Tensor:
    """`log_q_score` is the part of log q whose sites are not reparameterized."""
    log_w = log_p - log_q
    bound = log_mean_exp(log_w, 1 - alpha, dim=0)
    without = log_mean_exp(leave_one_out(log_w.detach()), 1 - alpha, dim=1)  # (K, B)
    return bound + ((bound.detach() - without) * log_q_score).sum(0)


def nvil(log_p: Tensor, log_q: Tensor, baseline: Tensor) -> Tensor:
    """`baseline` (B,) from a network of x: it is fitted, and never differentiated with z."""
    log_w = (log_p - log_q).detach()
    return reinforce(log_p, log_q, baseline.detach()) - (log_w - baseline).square().mean(0)
