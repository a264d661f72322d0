"""Reweighted wake-sleep in its wake-wake form.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x), and normalized
weights v_k = exp w_k / Σ_j exp w_j,

    ∇θ = Σ_k v_k ∇log p(x, z_k),     ∇φ = Σ_k v_k ∇log q(z_k | x).

The model ascends IWAE, without bias. The guide descends KL(p(z | x) || q(z | x)) by self-normalized
importance sampling: biased at finite K, consistent as K grows, without score function or
reparameterized draws. Weights are normalized per row. A scale or mask on the guide tempers log q in
weights and gradient. Points (Delta sites) are parameters of both terms. The sleep phase, which
trains the guide on data simulated from the model, needs a program that runs without data and is
omitted.

References:
    Bornschein, Bengio (2015). Reweighted wake-sleep. https://arxiv.org/abs/1406.2751
    Le, Kosiorek, Siddharth, Teh, Wood (2019). Revisiting reweighted wake-sleep.
    https://arxiv.org/abs/1805.10469
"""

from torch import Tensor

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.estimators.parts.moving_supports import moving_point
from ppl_lvm.particles import PairStructure, Particles
from ppl_lvm.particles.log_prob_tables import PairRun


class ReweightedWakeSleep(Estimator):
    """Wake-wake updates: IWAE for the model, KL(p || q) for the guide."""

    target = "IWAE; KL(p || q) for the guide"
    unbiased = False
    fixed_draws = True
    detaches_draws = True
    min_particles = 2
    fallback = "ScoreFunction"
    paper = "Bornschein, Bengio (2015). https://arxiv.org/abs/1406.2751"

    def validate_programs(self, run: PairRun, structure: PairStructure) -> None:
        """Also reject points whose density depends on parameters."""
        super().validate_programs(run, structure)
        moving = moving_point(run, structure)
        if moving is not None:
            raise ValueError(
                f"ReweightedWakeSleep differentiates log q at fixed draws, but the density of the "
                f"guide's point '{moving[0]}' depends on parameters at a fixed draw of "
                f"'{moving[1]}', which such a derivative misses. Use ThermodynamicELBO or ELBO, or "
                "TransformedDistribution in place of both sites."
            )

    def bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(particles.log_w)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        v = particles.log_w.detach().softmax(0)  # (K, B)
        return (v * (particles.log_p + particles.log_q)).sum(0)  # (B,)
