"""Rényi divergence of order α.

    D_α(p ‖ q) = 1/(α - 1) log E_q[(p/q)^α],    α > 0, α ≠ 1

D_α increases with α: 0 as α → 0, KL(p ‖ q) at 1, log max p/q as α → ∞. It equals
α/(1 - α) D_1-α(q ‖ p), so a small α seeks modes and a large one covers mass. The logarithm of a
mean of n samples is biased downward: the estimate is too large for α < 1 and too small for α > 1,
with a bias of order 1/n.

References:
    Rényi (1961). On measures of entropy and information.
    Li, Turner (2016). Rényi divergence variational inference. https://arxiv.org/abs/1602.02311
    (their divergence is D_α(q ‖ p))
"""

import math
from typing import Any

from torch import Tensor

from ppl_lvm.divergences.base import Divergence, Target


class RenyiDivergence(Divergence):
    """D_α(p ‖ q).

    Args:
        alpha: α.

    Raises:
        ValueError: α ≤ 0, or α = 1.
    """

    needs = ("density",)
    unbiased = False

    def __init__(self, alpha: float = 0.5) -> None:
        if not alpha > 0 or alpha == 1:
            raise ValueError(
                f"Renyi: alpha must be > 0 and not 1 (that is ForwardKL), got {alpha}."
            )
        self.alpha = alpha

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.log_density is not None
        x = q.rsample((n,))
        log_w = p.log_density(x) - q.log_prob(x)
        value: Tensor = ((self.alpha * log_w).logsumexp(0) - math.log(n)) / (self.alpha - 1)
        return value

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        log_product = self.alpha * log_p + (1 - self.alpha) * log_q
        return (log_product.logsumexp(0) + math.log(volume)) / (self.alpha - 1)
