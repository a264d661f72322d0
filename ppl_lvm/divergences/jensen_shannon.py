"""Jensen-Shannon divergence.

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m),    m = ½ (p + q),    at most log 2

Bounded and symmetric. From data alone, without p's density, it is the loss of a generator against
its optimal discriminator: see `ppl_lvm.fitting.adversarial`.

References:
    Lin (1991). Divergence measures based on the Shannon entropy.
    https://doi.org/10.1109/18.61115
    Goodfellow et al. (2014). Generative adversarial nets.
    https://arxiv.org/abs/1406.2661, theorem 1
"""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.divergences.base import Divergence, Target


class JensenShannon(Divergence):
    """JS(p, q)."""

    needs = ("normalized density", "draws")

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.log_density is not None
        assert p.draw is not None
        x, y = p.draw(n), q.rsample((n,))
        of_p = _to_mixture(p.log_density(x), q.log_prob(x))
        of_q = _to_mixture(q.log_prob(y), p.log_density(y))
        return 0.5 * (of_p.mean() + of_q.mean())

    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        of_p = log_p.exp() * _to_mixture(log_p, log_q)
        of_q = log_q.exp() * _to_mixture(log_q, log_p)
        return 0.5 * (of_p + of_q).sum() * volume


def _to_mixture(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log a - log ½ (a + b)."""
    return log_a - torch.logaddexp(log_a, log_b) + math.log(2)
