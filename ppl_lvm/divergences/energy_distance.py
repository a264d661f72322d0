"""Energy distance.

    E(p, q) = 2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖,    x, x' ~ p,  y, y' ~ q

Samples suffice, and there is no parameter to choose. In one dimension the distance is
2 ∫ (P - Q)² for the distribution functions P and Q.

Reference:
    Székely, Rizzo (2013). Energy statistics: a class of statistics based on distances.
    https://doi.org/10.1016/j.jspi.2013.03.018
"""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.divergences.base import Divergence, Target
from ppl_lvm.divergences.mmd import off_diagonal_mean


class EnergyDistance(Divergence):
    """E(p, q); unbiased from n samples of each."""

    needs = ("draws",)

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.draw is not None
        x, y = p.draw(n), q.rsample((n,))
        within = off_diagonal_mean(distances(x, x)) + off_diagonal_mean(distances(y, y))
        return 2 * distances(x, y).mean() - within

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        difference = (log_p.exp() - log_q.exp()) * volume
        return -difference @ distances(points, points) @ difference


def distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x - y‖ (n, m) of rows (n, P) and (m, P); its gradient is 0 where they are equal."""
    square = (x.unsqueeze(1) - y).square().sum(-1)
    distinct = square > 0
    return torch.where(distinct, square.where(distinct, square.new_ones(())).sqrt(), 0.0)
