"""The thermodynamic variational objective (TVO).

Along the path π_β ∝ q(z | x)^(1-β) p(x, z)^β the log-evidence is an integral,

    log p(x) = ∫_0^1 E_{π_β}[w] dβ,     w = log p(x, z) - log q(z | x),

whose integrand increases in β. Its left Riemann sum over 0 = β_0 < … < β_T = 1 is a lower bound,

    TVO = Σ_t (β_{t+1} - β_t) E_{π_{β_t}}[w],      which is the ELBO for T = 1.

With K particles z_k ~ q and v_k ∝ exp(β w_k), E_{π_β}[w] ≈ f = Σ_k v_k w_k, and its gradient is
the mean of ∇w and the covariance of w with ∇log π_β,

    Σ_k v_k ∇w_k + Σ_k v_k (w_k - f) (β ∇log p + (1 - β) ∇log q)      (eq. 12),

at fixed draws. Self-normalization makes it consistent in K and biased at finite K. Unlike the
paper, the covariance is divided by 1 - Σ_k v_k², which makes it exact at β = 0
(leave-one-out). With f = Σ_j v_j w_j and 1 - Σ_k v_k² = Σ_{k≠j} v_k v_j the factor of ∇log π_β is

    v_k (w_k - f) / (1 - Σ_k v_k²) = Σ_j P_kj (w_k - w_j),      P_kj ∝ exp(β (w_k + w_j)), k ≠ j,

which stays finite if one particle has all of v, where f = w_k and Σ_k v_k² = 1 to rounding.

Reference:
    Masrani, Le, Wood (2019). The thermodynamic variational objective.
    https://arxiv.org/abs/1907.00031
"""

import torch
from torch import Tensor

from ppl_lvm.core.validate import Count, Share
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles


class ThermodynamicELBO(Estimator):
    """The thermodynamic variational objective as a left Riemann sum.

    Args:
        num_particles: K.
        num_partitions: T. β_1..β_{T-1} are evenly spaced in the logarithm.
        beta_1: β_1, for T ≥ 2.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "TVO"
    unbiased = False
    fixed_draws = True
    detaches_draws = True
    min_particles = 2
    fallback = "ScoreFunction"
    paper = "Masrani, Le, Wood (2019). https://arxiv.org/abs/1907.00031"

    def __init__(
        self,
        num_particles: Count = 10,
        num_partitions: Count = 5,
        beta_1: Share = 0.05,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if num_partitions < 1:
            raise ValueError(f"ThermodynamicELBO needs num_partitions >= 1, got {num_partitions}.")
        if not 0 < beta_1 < 1:
            raise ValueError(f"ThermodynamicELBO needs 0 < beta_1 < 1, got {beta_1}.")
        self.num_partitions, self.beta_1 = num_partitions, beta_1
        T = num_partitions
        middle = [beta_1 ** (1 - t / (T - 1)) for t in range(T - 1)] if T > 1 else []
        self.betas = [0.0, *middle, 1.0]

    def bound(self, particles: Particles) -> Tensor:
        w = particles.log_w  # (K, B)
        total = torch.zeros_like(w[0])
        for beta, next_beta in zip(self.betas[:-1], self.betas[1:], strict=True):
            v = (beta * w).softmax(0)  # (K, B)
            total = total + (next_beta - beta) * (v * w).sum(0)
        return total  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        w = particles.log_w  # (K, B)
        fixed_w = w.detach()
        # The draws have the density of log_q without scales and masks.
        log_density = particles.log_q - particles.tempering_at_fixed_values
        total = torch.zeros_like(fixed_w[0])
        for beta, next_beta in zip(self.betas[:-1], self.betas[1:], strict=True):
            v = (beta * fixed_w).softmax(0)  # (K, B)
            log_path = beta * w + log_density
            covariance = (contrasts(beta, fixed_w) * log_path).sum(0)
            total = total + (next_beta - beta) * ((v * w).sum(0) + covariance)
        return total  # (B,)


def contrasts(beta: float, w: Tensor) -> Tensor:
    """Σ_j P_kj (w_k - w_j), (K, B)."""
    pairs = beta * (w.unsqueeze(1) + w)  # (K, K, B)
    same = torch.eye(len(w), dtype=torch.bool, device=w.device).unsqueeze(-1)
    P = pairs.masked_fill(same, -torch.inf).flatten(0, 1).softmax(0).unflatten(0, same.shape[:2])
    return (P * (w.unsqueeze(1) - w)).sum(1)
