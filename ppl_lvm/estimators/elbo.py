"""The evidence lower bound with pathwise (reparameterized) gradients.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k = z(ε_k, φ),

    ELBO ≈ 1/K Σ_k w_k,

differentiated through the draws. If a site's KL divergence has a closed form, and its p does not
depend on later sites of the guide, its term of w_k, log p(z) - log q(z), is replaced by the
expectation -KL(q || p): same mean, less variance.

References:
    Kingma, Welling (2014). Auto-encoding variational Bayes. https://arxiv.org/abs/1312.6114
    Rezende, Mohamed, Wierstra (2014). Stochastic backpropagation and approximate inference in
    deep generative models. https://arxiv.org/abs/1401.4082
"""

from torch import Tensor

from ppl_lvm.core.validate import Count
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles


class ELBO(Estimator):
    """The ELBO with pathwise gradients and analytic KL terms.

    Args:
        num_particles: K.
        analytic_kl: use closed forms of KL divergences where they are valid.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    requires = "reparameterized"
    expects_enumerated = True
    fallback = "LeaveOneOut"
    paper = "Kingma, Welling (2014). https://arxiv.org/abs/1312.6114"

    def __init__(
        self,
        num_particles: Count = 1,
        analytic_kl: bool = True,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        self.analytic_kl = analytic_kl

    def bound(self, particles: Particles) -> Tensor:
        w = particles.log_w  # (K, B)
        if self.analytic_kl:
            for draw in particles.site_draws.values():
                minus_kl = draw.analytic()
                if minus_kl is not None:
                    assert draw.log_p is not None
                    w = w + (minus_kl - (draw.log_p - draw.log_q))
        return w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        return self.bound(particles)
