"""The largest of K log-weights (VR-max).

    L = max_k w_k,     w_k = log p(x, z_k) - log q(z_k | x),

the limit of the variational Rényi bound for α → -∞, for every kind of site. Its backward pass needs
one particle. It is no bound: its mean may exceed log p(x). Sites with a reparameterized draw are
differentiated through the largest weight, others by their score,

    ∇E[L] ≈ Σ_k Σ_i (L - L_{-ki}) ∇log q(z_ki) + ∇L,

where L_{-ki} has the terms of w_k that draw i can change replaced by their mean in the other
particles.

Reference:
    Li, Turner (2016). Rényi divergence variational inference, section 4.2.
    https://arxiv.org/abs/1602.02311
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.leave_one_out_signal import leave_one_out_signal
from ppl_lvm.particles import Particles


def _largest(w: Tensor) -> Tensor:
    # At ties, max(0) gives the gradient to one particle; amax would split it.
    return w.max(0).values


class VRMax(Estimator):
    """The largest log-weight of K particles."""

    target = "max"
    unbiased = True
    paper = "Li, Turner (2016). https://arxiv.org/abs/1602.02311"

    @property
    def is_bound(self) -> bool:
        return False

    def bound(self, particles: Particles) -> Tensor:
        return _largest(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        L = _largest(particles.log_w)  # (B,)
        for term in particles.score_terms:
            signal = leave_one_out_signal(_largest, particles.log_w, term)  # (K, plates)
            L = L + term.per_row(signal).sum(0)
        return L  # (B,)
