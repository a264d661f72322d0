"""Losses of a hidden Markov model and a Bayesian regression.

HMM          z_t ~ Categorical(A_{z_{t-1}}), y_t ~ N(μ_{z_t}, 1), z summed out by the forward
             recursion; z_0 starts from row 0 of A
regression   w ~ N(0, I), log s ~ N(0, 1), y_n ~ N(x_n w, s²); q(w, log s) = N(m, L Lᵀ)
"""

import math

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def hmm_parameters(states: int) -> Parameters:
    """Logits of A (S, S), all zero, and means μ (S,), spread over [-1, 1]."""
    logits, means = torch.zeros(states, states), torch.linspace(-1, 1, states)
    return {"logits": logits.requires_grad_(), "means": means.requires_grad_()}


def hmm_loss(params: Parameters, y: Tensor) -> Tensor:
    """-log p(y), summed over sequences, for y (B, T)."""
    log_a = params["logits"].log_softmax(-1)  # (S, S)
    log_like = -0.5 * (y.unsqueeze(-1) - params["means"]) ** 2 - 0.5 * math.log(2 * math.pi)
    alpha = log_a[0] + log_like[:, 0]  # (B, S)
    for t in range(1, y.shape[1]):
        alpha = (alpha.unsqueeze(-1) + log_a).logsumexp(-2) + log_like[:, t]
    return -alpha.logsumexp(-1).sum()


def regression_parameters(columns: int) -> Parameters:
    """m (P + 1,) zero; L (P + 1, P + 1) a tenth of the identity, its diagonal as logarithms."""
    n = columns + 1
    return {
        "loc": torch.zeros(n, requires_grad=True),
        "log_diagonal": torch.full((n,), math.log(0.1), requires_grad=True),
        "lower": torch.zeros(n, n, requires_grad=True),
    }


def regression_loss(params: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """-ELBO from one draw, for x (N, P) and y (N,)."""
    log_diagonal = params["log_diagonal"]
    noise = torch.randn_like(params["loc"])
    tril = params["lower"].tril(-1) + torch.diag_embed(log_diagonal.exp())
    z = params["loc"] + tril @ noise  # (P + 1,)
    w, log_s = z[:-1], z[-1]
    log_prior = -0.5 * (z**2).sum()
    log_q = -0.5 * (noise**2).sum() - log_diagonal.sum()
    rest = -0.5 * ((y - x @ w) * (-log_s).exp()) ** 2 - log_s - 0.5 * math.log(2 * math.pi)
    return log_q - log_prior - rest.sum()
