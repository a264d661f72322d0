"""Sticking the landing (STL): the pathwise ELBO gradient without its score term.

With z_k = z(ε_k, φ) of K particles,

    S = 1/K Σ_k log p(x, z_k) - log q(z_k | x; φ held still),

so φ is reached through the draws only. What is left out, -∇φ log q(z; φ) at a fixed z, has mean
zero; without it the gradient's variance is zero where q(z | x) = p(z | x).

The guide is scored a second time, on values held still, and the gradient of that score is taken
out of log q. This is right for guides with several layers too, where stopping gradients at a
distribution's parameters or by hooks on the draws is not.

Reference:
    Roeder, Wu, Duvenaud (2017). Sticking the landing: simple, lower-variance gradient estimators
    for variational inference. https://arxiv.org/abs/1703.09194
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles


class StickingTheLanding(Estimator):
    """The evidence lower bound, pathwise, with no score term: zero variance at the posterior."""

    target = "ELBO"
    unbiased = True
    is_linear = True
    requires = "reparameterized"
    fallback = "LeaveOneOut"
    cost = "K, scored twice"
    paper = "Roeder, Wu, Duvenaud (2017). https://arxiv.org/abs/1703.09194"

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        return (particles.log_p - particles.log_q_at_fixed_parameters).mean(0)  # (B,)
