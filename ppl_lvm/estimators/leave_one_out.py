"""Leave-one-out score-function estimator (RLOO) of the ELBO.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x),

    ∇ELBO ≈ 1/K Σ_k Σ_i (c_ki - b_ki) ∇log q(z_ki) + ∇log p(x, z_k),

where c_ki has the terms of w_k that draw i can change, and the baseline b_ki is the mean of c_i in
the other K - 1 particles. Sites with a reparameterized draw have a pathwise gradient; the draws i
are those of the other sites. Of terms in plates, c_ki has those of the draw's own members
(Rao-Blackwellization, `ppl_lvm.particles.score_terms`). With one draw per row c_k = w_k.

References:
    Kool, van Hoof, Welling (2019). Buy 4 REINFORCE samples, get a baseline for free!
    https://openreview.net/forum?id=r1lgTGL5DE
    Mnih, Rezende (2016). Variational inference for Monte Carlo objectives.
    https://arxiv.org/abs/1602.06725
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles


class LeaveOneOut(Estimator):
    """The ELBO with score-function gradients and leave-one-out baselines."""

    target = "ELBO"
    unbiased = True
    is_linear = True
    min_particles = 2
    fallback = "ScoreFunction"
    paper = "Kool, van Hoof, Welling (2019). https://openreview.net/forum?id=r1lgTGL5DE"

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        pathwise = particles.log_p - particles.log_q_path  # (K, B)
        for term in particles.score_terms:
            c = term.cost  # (K, plates)
            b = (c.sum(0) - c) / (len(c) - 1)  # mean of the other particles
            pathwise = pathwise + term.per_row(c - b)
        return pathwise.mean(0)  # (B,)
