"""A Gaussian mixture with the component summed out.

    z_n ~ Categorical(π)                 summed out
    x_n ~ Normal(μ_{z_n}, L_z L_zᵀ)      observed  (N, P)

    log p(x_n) = log Σ_c π_c Normal(x_n; μ_c, L_c L_cᵀ)

L_c is lower triangular with exp(·) on its diagonal, so every step stays positive definite. Nothing
keeps a component from collapsing on duplicated rows: a yardstick for time, not for judgement.
"""

import math

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def parameters(x: Tensor, components: int) -> Parameters:
    """Means at random rows of x (N, P), all covariances equal to that of the data."""
    rows = torch.randperm(len(x))[:components]
    tril = torch.linalg.cholesky(x.T.cov()).expand(components, -1, -1)
    params = {
        "logits": x.new_zeros(components),
        "means": x[rows].clone(),
        "log_diagonal": tril.diagonal(dim1=-2, dim2=-1).log().clone(),
        "lower": tril.tril(-1).clone(),
    }
    return {name: value.requires_grad_() for name, value in params.items()}


def log_evidence(params: Parameters, x: Tensor) -> Tensor:
    """log p(x_n) of each row, (N,), for x (N, P)."""
    log_diagonal = params["log_diagonal"]
    tril = params["lower"].tril(-1) + torch.diag_embed(log_diagonal.exp())
    difference = x.unsqueeze(-2) - params["means"]  # (N, C, P)
    white = torch.linalg.solve_triangular(tril, difference.permute(1, 2, 0), upper=False)
    log_normal = (
        -0.5 * white.square().sum(1).T  # (N, C)
        - log_diagonal.sum(-1)
        - 0.5 * x.shape[-1] * math.log(2 * math.pi)
    )
    return (params["logits"].log_softmax(-1) + log_normal).logsumexp(-1)


def step(params: Parameters, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    """One ascent step; returns log p(x) summed over the rows, in nats."""
    optimizer.zero_grad()
    log_p = log_evidence(params, x).sum()
    (-log_p).backward()
    optimizer.step()
    return log_p.item()


def train(
    x: Tensor,
    *,
    components: int = 3,
    num_steps: int = 1000,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> Parameters:
    """Fit all rows of x (N, P) at every step."""
    torch.manual_seed(seed)
    params = parameters(x, components)
    optimizer = torch.optim.Adam(params.values(), lr=learning_rate)
    for _ in range(num_steps):
        step(params, optimizer, x)
    return params
