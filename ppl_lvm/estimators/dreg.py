"""Doubly reparameterized gradient of IWAE (DReG).

With log-weights w_k = log p(x, z_k; θ) - log q(z_k | x; φ), z_k = z(ε_k, φ), and their normalized
weights v_k = exp w_k / Σ_j exp w_j,

    ∇θ ≈ Σ_k v_k ∂w_k/∂θ,     ∇φ ≈ Σ_k v_k² ∂w_k/∂z_k ∂z_k/∂φ      (eqs. 6, 8),

The signal-to-noise ratio for φ grows as √K, where that of IWAE falls. Model and guide may share
parameters: the two paths have separate weights in one surrogate (sg = stop-gradient),

    S = Σ_k v_k² (log p(x, z_k) - log q(z_k | x; sg φ)) + (v_k - v_k²) log p(x, sg z_k).

A scale or mask on the guide's sites makes log q differ from the density of the draw. The
difference is treated as a term of log p, with weight v_k.

Reference:
    Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators for Monte
    Carlo objectives. https://arxiv.org/abs/1810.04152
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.particles import Particles


class DReG(Estimator):
    """The importance-weighted bound with doubly reparameterized gradients."""

    target = "IWAE"
    unbiased = True
    fixed_draws = True
    requires = "reparameterized"
    fallback = "VIMCO"
    cost = "K, scored twice"
    paper = "Tucker, Lawson, Gu, Maddison (2019). https://arxiv.org/abs/1810.04152"

    def bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        v = particles.log_w.detach().softmax(0)  # (K, B)
        through_draws = v**2 * (particles.log_p - particles.log_q_at_fixed_parameters)
        directly = (
            v - v**2
        ) * particles.log_p_at_fixed_values - v * particles.tempering_at_fixed_values
        return (through_draws + directly).sum(0)  # (B,)
