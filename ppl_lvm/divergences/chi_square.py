"""The χ² divergence: the variance of importance weights.

    χ²(p ‖ q) = E_q[(p/q)²] - 1 = var_q(p/q)

χ² is small if q is a good proposal for p. It is infinite if q's tails are much lighter than p's;
its estimate is too noisy long before. log(1 + χ²) is the Rényi divergence of order 2.

Reference:
    Dieng, Tran, Ranganath, Paisley, Blei (2017). Variational inference via χ upper bound
    minimization. https://arxiv.org/abs/1611.00328
"""

from typing import Any

from torch import Tensor

from ppl_lvm.divergences.base import Divergence, Target


class ChiSquare(Divergence):
    """χ²(p ‖ q)."""

    needs = ("normalized density",)

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.log_density is not None
        x = q.rsample((n,))
        value: Tensor = (2 * (p.log_density(x) - q.log_prob(x))).exp().mean() - 1
        return value

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        return (2 * log_p - log_q).exp().sum() * volume - 1
