"""The χ upper bound on the evidence (CUBO).

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x), and n ≥ 1,

    CUBO_n = 1/n log E_q[exp n w]  ≥  log p(x),

estimated by 1/n log 1/K Σ_k exp n w_k. The mean of this estimate is *below* CUBO_n (Jensen), so it
is an upper bound only as K grows. Its gradient is biased for the same reason: at K = 1 it would
descend the ELBO. The estimator therefore descends EXP-CUBO,

    E_q[exp n (w - c)] / n,

which is unbiased at every K. c is a decaying average of the estimates of past steps. It does not
depend on the current draws and keeps the exponential in range. Sites with a reparameterized draw
have a pathwise gradient, other sites a score-function gradient.

CUBO fits the guide. Descending it in the model's parameters lowers the evidence, so fix those.

Reference:
    Dieng, Tran, Ranganath, Paisley, Blei (2017). Variational inference via χ upper bound
    minimization, equations 3 and 5. https://arxiv.org/abs/1611.00328
"""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.validate import Count, Number, Share
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.decaying_average import DecayingAverage
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.particles import Particles
from ppl_lvm.particles.structure import Program


class CUBO(Estimator):
    """The χ upper bound of order n.

    Args:
        num_particles: K.
        n: the order, at least 1; the bound increases in n.
        beta: what the average c keeps of itself at each step, in [0, 1).
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "exp CUBO"
    unbiased = True
    is_upper_bound = True
    non_finite_hint = (
        "CUBO: the exponential of log-weights overflows. Start from a guide fitted by ELBO, "
        "lower n, or use double precision, torch.set_default_dtype(torch.float64)."
    )
    paper = "Dieng et al. (2017). https://arxiv.org/abs/1611.00328"

    def __init__(
        self,
        num_particles: Count = 16,
        n: Number = 2.0,
        beta: Share = 0.9,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not n >= 1:
            raise ValueError(f"CUBO needs an order n >= 1, got n={n}. Use Renyi for 0 < n < 1.")
        self.n, self.beta = n, beta
        self.average = DecayingAverage(beta)
        self._started = False

    @property
    def is_bound(self) -> bool:
        return False

    def draw(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Particles:
        if not self._started:  # the first c comes from extra draws
            self._started = True
            if float(self.average.weight) == 0:
                with torch.no_grad():
                    self.update_state(super().draw(model, guide, args, kwargs))
        return super().draw(model, guide, args, kwargs)

    def bound(self, particles: Particles) -> Tensor:
        return log_mean_exp(self.n * particles.log_w) / self.n  # (B,)

    def objective(self, particles: Particles) -> Tensor:
        """-EXP-CUBO, the objective that S ascends: (B,)."""
        c = self.average().to(particles.log_w)
        return -((self.n * (particles.log_w - c)).exp() / self.n).mean(0)

    def surrogate(self, particles: Particles) -> Tensor:
        c = self.average().to(particles.log_w)
        power = (self.n * (particles.log_w - c)).exp() / self.n  # (K, B)
        if particles.score is not None:
            power = power + power.detach() * particles.score
        return -power.mean(0)  # (B,)

    def update_state(self, particles: Particles) -> None:
        self.average.add(self.bound(particles))
