"""Adaptive Gauss-Hermite quadrature over standard normal factors.

    log ∫ p(x_n | z) N(z; 0, I) dz ≈ log |L_n| + log Σ_q w_q exp{ ½ |t_q|² + f_n(ẑ_n + L_n t_q) },

with f_n(z) = log p(x_n | z) + log N(z; 0, I), its maximum ẑ_n, L_n L_nᵀ = (-∇² f_n(ẑ_n))⁻¹, and the
product rule t_q, w_q of the weight exp(-½ |t|²). The rule is exact where f_n is quadratic. Columns
that determine z make f_n nearly so, while nodes that are fixed at the prior miss its peak. f_n must
be concave. The error estimate is the difference to the rule with half of the nodes.

References:
    Liu, Pierce (1994). A note on Gauss-Hermite quadrature.
    Pinheiro, Bates (1995). Approximations to the log-likelihood function in the nonlinear
    mixed-effects model.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MOST_FACTORS = 3
NODES = {1: 41, 2: 31, 3: 15}  # of each factor
MOST_POINTS = 2**15  # of the product rule, up to which rows with a large error are refined
MOST_NODES = 100  # of one factor: the weights of larger rules underflow
TOLERANCE = 1e-6  # nats per row, above which a row is refined
BLOCK_NUMBERS = 2**22  # log-probabilities in memory at once
_NEWTON_STEPS, _HALVINGS = 200, 50

LogDensity = Callable[[Tensor, Tensor], Tensor]  # rows (n,) and z (n, Q, D) -> f_n(z) (n, Q)


def log_integrals(
    log_joint: LogDensity, num_rows: int, numbers: int, nodes: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Logarithms of the integrals over z, and their estimated errors, in nats: (N,) each.

    Args:
        log_joint: f_n(z) of row indices (n,) and points (n, Q, D).
        num_rows: N.
        numbers: log-probabilities that one point of one row takes, for the size of blocks.
        nodes: of each factor, in the first pass. Rows whose error is above `TOLERANCE` get twice as
            many, while there are no more than `MOST_NODES` nodes and `MOST_POINTS` points.
        like: a tensor (..., D) of the dtype and device of z.

    Raises:
        ValueError: for more than `MOST_NODES` nodes.
    """
    if not 1 <= nodes <= MOST_NODES:
        raise ValueError(f"Quadrature takes 1 to {MOST_NODES} nodes, got nodes={nodes}.")
    D, rows = like.shape[-1], torch.arange(num_rows, device=like.device)
    with torch.no_grad():
        mode, L = laplace(log_joint, rows, like)
        coarse = _integrate(log_joint, rows, mode, L, max(nodes // 2, 1), numbers)
    value = _integrate(log_joint, rows, mode, L, nodes, numbers)
    error = (value - coarse).detach().abs()
    while (refined := ~(error <= TOLERANCE)).any():
        nodes *= 2
        if nodes > MOST_NODES or nodes**D > MOST_POINTS:
            break
        n = rows[refined]
        finer = _integrate(log_joint, n, mode[n], L[n], nodes, numbers)
        error = error.index_put((n,), (finer - value[n]).detach().abs())
        value = value.index_put((n,), finer)
    return value, error


def laplace(log_joint: LogDensity, rows: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """ẑ (n, D) by Newton's method with halved steps, and L (n, D, D)."""
    z = like.new_zeros(len(rows), like.shape[-1])
    value, gradient, precision = _derivatives(log_joint, rows, z)
    for _ in range(_NEWTON_STEPS):
        step = torch.linalg.solve(precision, gradient[..., None]).squeeze(-1)
        gain = (gradient * step).sum(-1)  # twice the gain of a quadratic function
        if not (gain > 1e-12).any():
            break
        share = torch.ones_like(gain)
        for _ in range(_HALVINGS):
            proposal = log_joint(rows, (z + share[:, None] * step)[:, None]).squeeze(1)
            rises = proposal >= value + 0.1 * share * gain - 1e-9 * value.abs()
            if rises.all():
                break
            share = torch.where(rises, share, 0.5 * share)
        z = z + torch.where(rises, share, 0.0)[:, None] * step
        value, gradient, precision = _derivatives(log_joint, rows, z)
    return z, torch.linalg.cholesky(torch.linalg.inv(precision))


def _derivatives(log_joint: LogDensity, rows: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f_n (n,), its gradient (n, D) and negative Hessian (n, D, D) at z (n, D)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_joint(rows, z[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        second = [
            torch.autograd.grad(gradient[:, d].sum(), z, retain_graph=True)[0]
            for d in range(z.shape[1])
        ]
    return value.detach(), gradient.detach(), -torch.stack(second, 1)


def _integrate(
    log_joint: LogDensity, rows: Tensor, mode: Tensor, L: Tensor, nodes: int, numbers: int
) -> Tensor:
    """The product rule with this number of nodes for each factor: (n,)."""
    D = mode.shape[-1]
    t, w = (torch.from_numpy(a).to(mode) for a in np.polynomial.hermite_e.hermegauss(nodes))
    points = torch.cartesian_prod(*[t] * D).reshape(-1, D)  # (Q, D)
    weight = torch.cartesian_prod(*[w.log()] * D).reshape(-1, D).sum(-1)
    weight = weight + 0.5 * points.square().sum(-1)
    size = max(1, BLOCK_NUMBERS // (numbers * len(points)))
    parts = [
        (log_joint(rows[n], mode[n, None] + points @ L[n].mT) + weight).logsumexp(-1)
        for n in torch.arange(len(rows), device=rows.device).split(size)
    ]
    return torch.cat(parts) + L.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of z (..., D): (...)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
