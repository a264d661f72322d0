"""Score-function estimator (REINFORCE) of the ELBO.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x),

    ∇ELBO ≈ 1/K Σ_k Σ_i c_ki ∇log q(z_ki) + ∇log p(x, z_k),

where c_ki has the terms of w_k that draw i can change (`ppl_lvm.particles.score_terms`). It is
unbiased for every kind of site, with high variance: with two or more particles LeaveOneOut has the
same mean and less variance. Sites with a reparameterized draw have a pathwise gradient; the draws i
are those of the other sites.

References:
    Williams (1992). Simple statistical gradient-following algorithms for connectionist
    reinforcement learning. https://doi.org/10.1007/BF00992696
    Ranganath, Gerrish, Blei (2014). Black box variational inference.
    https://arxiv.org/abs/1401.0118
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles


class ScoreFunction(Estimator):
    """The ELBO with score-function gradients, without a baseline."""

    target = "ELBO"
    unbiased = True
    is_linear = True
    paper = "Williams (1992). https://doi.org/10.1007/BF00992696"

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        pathwise = particles.log_p - particles.log_q_path  # (K, B)
        for term in particles.score_terms:
            pathwise = pathwise + term.per_row(term.cost)
        return pathwise.mean(0)  # (B,)
