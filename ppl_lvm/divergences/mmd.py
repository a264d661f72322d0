"""Maximum mean discrepancy between kernel mean embeddings.

    MMD²(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y),    x, x' ~ p,  y, y' ~ q
    k(x, y) = 1/L Σ_l exp(-‖x - y‖² / (2 ℓ_l²))

Samples of p and q suffice. The U-statistic of n samples each, without pairs of a sample with
itself, is unbiased and may be negative. Differences at scales far from every ℓ are invisible.

Reference:
    Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012). A kernel two-sample test.
    https://jmlr.org/papers/v13/gretton12a.html, equation 3
"""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.validate import Positive
from ppl_lvm.divergences.base import Divergence, Target


class MMD(Divergence):
    """MMD²(p, q) with Gaussian kernels.

    Args:
        bandwidths: ℓ, in the units of x.

    Raises:
        ValueError: no bandwidth, or one that is not positive.
    """

    needs = ("draws",)

    def __init__(self, bandwidths: tuple[Positive, ...] = (1.0,)) -> None:
        if not bandwidths:
            raise ValueError("MMD: bandwidths=() has no entry. Pass one or more, such as (1.0,).")
        self.bandwidths = tuple(bandwidths)

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """k (n, m) of rows x (n, P) and y (m, P)."""
        square = (x.unsqueeze(1) - y).square().sum(-1)
        each = [torch.exp(-square / (2 * scale**2)) for scale in self.bandwidths]
        return torch.stack(each).mean(0)

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.draw is not None
        x, y = p.draw(n), q.rsample((n,))
        within = off_diagonal_mean(self.kernel(x, x)) + off_diagonal_mean(self.kernel(y, y))
        return within - 2 * self.kernel(x, y).mean()

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        difference = (log_p.exp() - log_q.exp()) * volume
        return difference @ self.kernel(points, points) @ difference


def off_diagonal_mean(table: Tensor) -> Tensor:
    """Mean of a table (n, n) without its diagonal."""
    n = len(table)
    return (table.sum() - table.diagonal().sum()) / (n * (n - 1))
