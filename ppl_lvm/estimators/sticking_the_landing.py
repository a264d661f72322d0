"""Sticking the landing (STL): pathwise gradient without score term.

With z_k = z(ε_k, φ) of K particles,

    S = 1/K Σ_k log p(x, z_k) - log q(z_k | x; sg φ),

with the stop-gradient sg: gradients reach φ through the draws only. The omitted term,
-∇φ log q(z; φ) at a fixed z, has mean zero. Without it the gradient has zero variance where
q(z | x) = p(z | x).

The guide is scored a second time at detached values, and the gradient of that score is subtracted
from log q. This is correct for guides with several layers too; stopping gradients at a
distribution's parameters or by hooks on the draws is not.

Reference:
    Roeder, Wu, Duvenaud (2017). Sticking the landing: simple, lower-variance gradient estimators
    for variational inference. https://arxiv.org/abs/1703.09194
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles


class StickingTheLanding(Estimator):
    """The ELBO with pathwise gradients without score term: zero variance at the posterior."""

    target = "ELBO"
    unbiased = True
    is_linear = True
    fixed_draws = True
    requires = "reparameterized"
    fallback = "LeaveOneOut"
    cost = "K, scored twice"
    paper = "Roeder, Wu, Duvenaud (2017). https://arxiv.org/abs/1703.09194"

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        log_w = particles.log_p - particles.log_q_at_fixed_parameters  # (K, B)
        return (log_w - particles.points_at_fixed_values).mean(0)  # (B,)
