"""The importance-weighted bound with pathwise gradients (IWAE).

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k = z(ε_k, φ),

    L_K = log 1/K Σ_k exp w_k,     L_1 ≤ L_2 ≤ … ≤ log p(x),

differentiated through the draws. The signal-to-noise ratio of the guide's gradient falls as
1/√K (Rainforth et al. 2018); that of DReG does not.

References:
    Burda, Grosse, Salakhutdinov (2016). Importance weighted autoencoders.
    https://arxiv.org/abs/1509.00519
    Rainforth et al. (2018). Tighter variational bounds are not necessarily better.
    https://arxiv.org/abs/1802.04537
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.particles import Particles


class IWAE(Estimator):
    """The importance-weighted bound with pathwise gradients."""

    target = "IWAE"
    unbiased = True
    requires = "reparameterized"
    fallback = "VIMCO"
    paper = "Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519"

    def bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        return self.bound(particles)
