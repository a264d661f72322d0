"""Leave-one-out score-function estimator (RLOO) of the ELBO.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x),

    ∇ELBO ≈ 1/K Σ_k (w_k - b_k) ∇log q(z_k | x) + ∇log p(x, z_k),

where the baseline b_k is the mean of the other K - 1 weights. Sites with a reparameterized
draw have a pathwise gradient; the score is that of the other sites.

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
        if particles.score is None:
            return pathwise.mean(0)
        w = particles.log_w.detach()  # (K, B)
        b = (w.sum(0) - w) / (len(w) - 1)  # (K, B) mean of the other weights
        return (pathwise + (w - b) * particles.score).mean(0)  # (B,)
