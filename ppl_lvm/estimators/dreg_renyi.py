"""Doubly reparameterized gradient of the variational Rényi bound.

With log-weights w_k = log p(x, z_k; θ) - log q(z_k | x; φ), z_k = z(ε_k, φ), and weights
v_k ∝ exp((1 - α) w_k) that sum to one,

    ∇θ ≈ Σ_k v_k ∂w_k/∂θ,     ∇φ ≈ Σ_k c_k ∂w_k/∂z_k ∂z_k/∂φ,     c_k = α v_k + (1 - α) v_k².

α = 0 is DReG of IWAE, α = 1 (all v_k = 1/K) is sticking the landing. In one surrogate, with the
stop-gradient sg,

    S = Σ_k c_k (log p(x, z_k) - log q(z_k | x; sg φ)) + (v_k - c_k) log p(x, sg z_k).

It follows from the derivative of v_k in z_k: dv_k/dz_k = (1 - α) v_k (1 - v_k) dw_k/dz_k.

References:
    Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators for Monte
    Carlo objectives. https://arxiv.org/abs/1810.04152
    Li, Turner (2016). Rényi divergence variational inference. https://arxiv.org/abs/1602.02311
"""

import math

from torch import Tensor

from ppl_lvm.core.validate import Count, Number
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.particles import Particles


class DReGRenyi(Estimator):
    """The variational Rényi bound of order alpha with doubly reparameterized gradients.

    Args:
        num_particles: K.
        alpha: the order, any finite number.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "Rényi"
    unbiased = True
    fixed_draws = True
    requires = "reparameterized"
    fallback = "Renyi"
    cost = "K, scored twice"
    paper = "Tucker, Lawson, Gu, Maddison (2019). https://arxiv.org/abs/1810.04152"

    def __init__(
        self, num_particles: Count = 2, alpha: Number = 0.5, vectorize_particles: bool | None = None
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not math.isfinite(alpha):
            raise ValueError(f"DReGRenyi needs a finite alpha, got {alpha}. Use VRMax for -inf.")
        self.alpha = alpha

    @property
    def is_bound(self) -> bool:
        return self.alpha >= 0

    def bound(self, particles: Particles) -> Tensor:
        w = particles.log_w  # (K, B)
        if self.alpha == 1:
            return w.mean(0)
        return log_mean_exp((1 - self.alpha) * w) / (1 - self.alpha)

    def surrogate(self, particles: Particles) -> Tensor:
        v = ((1 - self.alpha) * particles.log_w.detach()).softmax(0)  # (K, B)
        c = self.alpha * v + (1 - self.alpha) * v**2
        through_draws = c * (particles.log_p - particles.log_q_at_fixed_parameters)
        directly = (
            v - c
        ) * particles.log_p_at_fixed_values - v * particles.tempering_at_fixed_values
        return (through_draws + directly).sum(0)  # (B,)
