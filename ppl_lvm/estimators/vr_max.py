"""The largest of K log-weights (VR-max), for every kind of draw.

    L = max_k w_k,     w_k = log p(x, z_k) - log q(z_k | x),

the limit of the variational Rényi bound for α → -∞. It costs one backward pass through one
particle, and it is no bound: its mean may exceed log p(x). Sites with a reparameterised draw are
differentiated through the largest weight, others by their score,

    ∇E[L] ≈ Σ_k (L - L_{-k}) ∇log q(z_k | x) + ∇L,

where L_{-k} has w_k replaced by the mean of the other w_j.

Reference:
    Li, Turner (2016). Rényi divergence variational inference, section 4.2.
    https://arxiv.org/abs/1602.02311
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.leave_one_out_signal import leave_one_out_signal
from ppl_lvm.particles import Particles


def _largest(w: Tensor) -> Tensor:
    # Where weights are equal, max(0) gives the whole gradient to one particle; amax shares it.
    return w.max(0).values


class VRMax(Estimator):
    """The largest log-weight of K particles."""

    target = "max"
    unbiased = True
    is_bound = False
    paper = "Li, Turner (2016). https://arxiv.org/abs/1602.02311"

    def bound(self, particles: Particles) -> Tensor:
        return _largest(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        L = _largest(particles.log_w)  # (B,)
        if particles.score is None:
            return L
        signal = leave_one_out_signal(_largest, particles.log_w)  # (K, B)
        return L + (signal * particles.score).sum(0)  # (B,)
