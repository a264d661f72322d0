"""Forward and reverse Kullback-Leibler divergences.

    KL(p ‖ q) = E_p[log p - log q]    forward: maximum likelihood; q covers the mass of p
    KL(q ‖ p) = E_q[log q - log p]    reverse: variational inference; q seeks a mode of p

Reference:
    Kullback, Leibler (1951). On information and sufficiency.
    https://doi.org/10.1214/aoms/1177729694
"""

from typing import Any

from torch import Tensor

from ppl_lvm.divergences.base import Divergence, Target


class ForwardKL(Divergence):
    """KL(p ‖ q); the cross-entropy if p's density is unknown."""

    needs = ("draws",)

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.draw is not None
        x = p.draw(n)
        log_p = 0.0 if p.log_density is None else p.log_density(x)
        value: Tensor = (log_p - q.log_prob(x)).mean()
        return value

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        return (log_p.exp() * (log_p - log_q)).sum() * volume


class ReverseKL(Divergence):
    """KL(q ‖ p), up to the log normalizing constant of p if that is unknown."""

    needs = ("density",)

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.log_density is not None
        x = q.rsample((n,))
        value: Tensor = (q.log_prob(x) - p.log_density(x)).mean()
        return value

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        return (log_q.exp() * (log_q - log_p)).sum() * volume
