"""The variational Rényi bound for every kind of site.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles,

    L_α = 1/(1 - α) log 1/K Σ_k exp((1 - α) w_k),

which decreases in α: α = 0 is IWAE, α → 1 the ELBO, α → -∞ VRMax. For α ≥ 0 its mean is a lower
bound on log p(x) at every K; for α < 0 it need not be. Sites with a reparameterized draw have
a pathwise gradient, other sites a score-function gradient,

    ∇E[L_α] ≈ Σ_k Σ_i (L_α - L_{α,-ki}) ∇log q(z_ki) + ∇L_α,

where L_{α,-ki} has the terms of w_k that draw i can change replaced by their mean in the other
particles. The gradient needs both the factor of α and the K-sample score term.

Reference:
    Li, Turner (2016). Rényi divergence variational inference. https://arxiv.org/abs/1602.02311
    (the paper has no score term; this one is that of VIMCO for this bound).
"""

import math

from torch import Tensor

from ppl_lvm.core.validate import Count, Number
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.leave_one_out_signal import leave_one_out_signal
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.particles import Particles


class Renyi(Estimator):
    """The variational Rényi bound of order alpha.

    Args:
        num_particles: K.
        alpha: the order, any finite number; 0 is IWAE, 1 the ELBO.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "Rényi"
    unbiased = True
    paper = "Li, Turner (2016). https://arxiv.org/abs/1602.02311"

    def __init__(
        self, num_particles: Count = 2, alpha: Number = 0.5, vectorize_particles: bool | None = None
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not math.isfinite(alpha):
            raise ValueError(f"Renyi needs a finite alpha, got {alpha}. Use VRMax for -inf.")
        self.alpha = alpha

    @property
    def is_bound(self) -> bool:
        return self.alpha >= 0

    def order(self, w: Tensor) -> Tensor:
        """L_α of log-weights: (K, ...) -> (...)."""
        if self.alpha == 1:
            return w.mean(0)
        return log_mean_exp((1 - self.alpha) * w) / (1 - self.alpha)

    def bound(self, particles: Particles) -> Tensor:
        return self.order(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        L = self.order(particles.log_w)  # (B,)
        for term in particles.score_terms:
            signal = leave_one_out_signal(self.order, particles.log_w, term)  # (K, plates)
            L = L + term.per_row(signal).sum(0)
        return L  # (B,)
