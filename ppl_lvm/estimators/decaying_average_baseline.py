"""Score-function estimator with a decaying-average baseline.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x),

    ∇ELBO ≈ 1/K Σ_k Σ_i (c_ki - a_i) ∇log q(z_ki) + ∇log p(x, z_k),
    a_i ← β a_i + (1 - β) mean(c_i)      after use,

where c_ki has the terms of w_k that draw i can change (`ppl_lvm.particles.score_terms`); with one
site per row c_k = w_k. The scalar a_i of a site does not depend on the current draws, so the
gradient is unbiased for every β. All rows share it; if log p(x) differs much between rows, use
NeuralBaseline or LeaveOneOut.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks, section
    2.3. https://arxiv.org/abs/1402.0030
"""

from torch import Tensor

from ppl_lvm.core.validate import Count, Share
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.decaying_average import DecayingAverage
from ppl_lvm.particles import PairStructure, Particles


class DecayingAverageBaseline(Estimator):
    """The ELBO with score-function gradients and a decaying average as baseline.

    Args:
        num_particles: K.
        beta: decay rate of the average, in [0, 1).
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    paper = "Mnih, Gregor (2014). https://arxiv.org/abs/1402.0030"

    def __init__(
        self, num_particles: Count = 1, beta: Share = 0.9, vectorize_particles: bool | None = None
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        self.beta = beta
        self.average = DecayingAverage(beta)

    def validate(self, structure: PairStructure) -> None:
        super().validate(structure)
        self.average.resize(max(1, len(structure.score_sites)))

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        pathwise = particles.log_p - particles.log_q_path  # (K, B)
        for a, term in zip(self.average().reshape(-1), particles.score_terms, strict=False):
            pathwise = pathwise + term.per_row(term.cost - a.to(pathwise))
        return pathwise.mean(0)  # (B,)

    def update_state(self, particles: Particles) -> None:
        if particles.score_terms:
            self.average.add(*(term.cost for term in particles.score_terms))
