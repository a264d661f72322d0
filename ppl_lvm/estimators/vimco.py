"""Variational inference for Monte Carlo objectives (VIMCO).

The importance-weighted bound for every kind of site. With log-weights
w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x), and

    L = log 1/K Σ_k exp w_k,

    ∇E[L] ≈ Σ_k Σ_i (L - L_{-ki}) ∇log q(z_ki) + ∇L,

where L_{-ki} is L with the terms of w_k that draw i can change replaced by their mean in the other
particles. With one draw per row that is the mean of the other w_j (the geometric mean of their
weights, eq. 10). ∇L includes -log q and the pathwise gradient of sites with a reparameterized draw;
the draws i are those of the other sites.

Reference:
    Mnih, Rezende (2016). Variational inference for Monte Carlo objectives.
    https://arxiv.org/abs/1602.06725
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.leave_one_out_signal import leave_one_out_signal
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.particles import Particles


class VIMCO(Estimator):
    """The importance-weighted bound with score-function gradients and leave-one-out baselines."""

    target = "IWAE"
    unbiased = True
    min_particles = 2
    fallback = "ScoreFunction"
    paper = "Mnih, Rezende (2016). https://arxiv.org/abs/1602.06725"

    def bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        L = log_mean_exp(particles.log_w)  # (B,)
        for term in particles.score_terms:
            signal = leave_one_out_signal(log_mean_exp, particles.log_w, term)  # (K, plates)
            L = L + term.per_row(signal).sum(0)
        return L  # (B,)
