"""DisARM (U2G): antithetic pairs of Bernoulli draws.

For bits with logits φ_i and uniform u_i, a pair of particles is

    b_i = 1[1 - u_i < σ(φ_i)],     b'_i = 1[u_i < σ(φ_i)],

each a draw from q. With f = log p(x, b) - log q(b | x),

    ∇φ_i ELBO ≈ 1/2 (f(b) - f(b')) (-1)^{b'_i} 1[b_i ≠ b'_i] σ(|φ_i|),

averaged over the K/2 pairs; ∇θ is the gradient of log p at all K particles. All bits of a row
share the two evaluations of f.

References:
    Dong, Mnih, Tucker (2020). DisARM: an antithetic gradient estimator for binary latent
    variables. https://arxiv.org/abs/2006.10680
    Yin, Ho, Yan, Qian, Zhou (2020). Probabilistic best subset selection via gradient-based
    optimization (U2G). https://arxiv.org/abs/2006.06448
"""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.core.distributions import elementary
from ppl_lvm.core.validate import Count
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import PARTICLE_PLATE, plate_dim, table


def uniform(like: Tensor) -> Tensor:
    """Uniform noise u in [0, 1), one per bit: like -> like."""
    return torch.rand_like(like)


class Antithetic(Messenger):
    """Draw the guide's Bernoulli site in antithetic pairs: particle k and particle K/2 + k."""

    def __init__(self, structure: PairStructure, num_pairs: Count) -> None:
        super().__init__()
        self.structure = structure
        self.num_pairs = num_pairs
        self.u: list[Tensor] = []
        self.directions: list[Tensor] = []
        self.num_runs = 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["name"] not in self.structure.score_sites:
            return
        logits = elementary(msg["fn"]).logits
        if any(f.name == PARTICLE_PLATE for f in msg["cond_indep_stack"]):
            logits = logits[: self.num_pairs]
            u = uniform(logits.detach())
            value = torch.cat([self._first(u, logits), self._second(u, logits)])
            self.directions.append(self._direction(u, logits, msg))
        elif self.num_runs < self.num_pairs:  # in a loop: first all b, then all b'
            self.u.append(uniform(logits.detach()))
            value = self._first(self.u[-1], logits)
            self.directions.append(self._direction(self.u[-1], logits, msg))
        else:
            value = self._second(self.u[self.num_runs - self.num_pairs], logits)
        self.num_runs += 1
        msg["value"] = value
        msg["done"] = True

    @staticmethod
    def _first(u: Tensor, logits: Tensor) -> Tensor:
        return (1 - u < logits.detach().sigmoid()).to(logits)

    @staticmethod
    def _second(u: Tensor, logits: Tensor) -> Tensor:
        return (u < logits.detach().sigmoid()).to(logits)

    def _direction(self, u: Tensor, logits: Tensor, msg: Any) -> Tensor:
        """Σ_i (-1)^{b'_i} 1[b_i ≠ b'_i] σ(|φ_i|) φ_i, gradient in φ_i only: (K/2, B)."""
        b, b2 = self._first(u, logits), self._second(u, logits)
        weight = (1 - 2 * b2) * (b != b2) * logits.detach().abs().sigmoid()
        bits = weight * logits
        event = msg["fn"].event_dim
        per_site = bits.sum(list(range(-event, 0))) if event else bits
        return table(per_site, self.structure.nesting, plate_dim(msg, self.structure.data_plate))


class DisARM(Estimator):
    """The ELBO with DisARM gradients of one Bernoulli site.

    Args:
        num_particles: K, even: K/2 pairs.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    min_particles = 2
    requires = "bernoulli"
    fallback = "LeaveOneOut"
    sampling = "antithetic"
    paper = "Dong, Mnih, Tucker (2020). https://arxiv.org/abs/2006.10680"

    def __init__(self, num_particles: Count = 2, vectorize_particles: bool | None = None) -> None:
        super().__init__(num_particles, vectorize_particles)
        if num_particles % 2:
            raise ValueError(
                f"DisARM draws pairs, got num_particles={num_particles}. Use an even number."
            )

    def draw_handler(self, structure: PairStructure) -> Messenger:
        return Antithetic(structure, self.num_particles // 2)

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        pairs: Antithetic = particles.drawing
        f, f2 = particles.log_w.detach().chunk(2)  # (K/2, B) each
        guide = 0.5 * (f - f2) * torch.cat(pairs.directions)  # (K/2, B)
        return particles.log_p.mean(0) + guide.mean(0)  # (B,)
