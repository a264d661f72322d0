"""Forward process of a diffusion with a learned schedule.

    u = (x - m) / s                              standardized rows              (N, P)
    q(z_t | x) = N(α_t u, σ_t² I)                at every time t in [0, 1]
    α_t² = sigmoid(-γ_t),  σ_t² = sigmoid(γ_t)   so log SNR(t) = log α_t²/σ_t² = -γ_t
    γ_t = γ_0 + (γ_1 - γ_0) c(t)

where c rises from c(0) = 0 to c(1) = 1, linear in each of `pieces` intervals. Both ends and the
shape of c are learned. Of two times s < t,

    q(z_s | z_t, x) = N(α_s u + σ_s √(1 - r) ε, σ_s² r I),   ε = (z_t - α_t u) / σ_t,
    r = 1 - exp(γ_s - γ_t).

Reference:
    Kingma, Salimans, Poole, Ho (2021). Variational diffusion models.
    https://arxiv.org/abs/2107.00630, sections 3.1, 3.2 and appendix A.
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_lvm.core.validate import Count

LEAST_GAMMA = -13.8  # noise of a millionth of the data's variance bounds the density
FIRST, LAST = -6.0, 5.0  # initial γ_0 and γ_1


class Noising(nn.Module):
    """The forward process of rows (N, P), cut into T steps.

    Args:
        steps: T.
        pieces: linear pieces of the schedule.

    Raises:
        ValueError: for fewer than one of either.
    """

    means: Tensor  # m (P,)
    unit: Tensor  # s (P,)

    def __init__(self, steps: Count, pieces: Count = 10) -> None:
        super().__init__()
        if steps < 1 or pieces < 1:
            raise ValueError(
                f"A diffusion needs steps >= 1 and pieces >= 1; got steps={steps}, pieces={pieces}."
            )
        self.steps = steps
        # γ_0 = LEAST_GAMMA + softplus(·), γ_1 - γ_0 = exp(·), and c's increments softmax(·).
        start = torch.tensor(FIRST - LEAST_GAMMA)
        self.first = nn.Parameter(start + torch.log(-torch.expm1(-start)))
        self.log_span = nn.Parameter(torch.tensor(LAST - FIRST).log())
        self.increments = nn.Parameter(torch.zeros(pieces))

    def resize(self, observed: int) -> None:
        """Set P, with means 0 and units 1."""
        self.register_buffer("means", torch.zeros(observed))
        self.register_buffer("unit", torch.ones(observed))

    def gamma(self, t: Tensor) -> Tensor:
        """γ at times `t` in [0, 1], any shape."""
        share = self.increments.softmax(0)
        pieces = len(share)
        before = (t.detach() * pieces).floor().clamp(0, pieces - 1)
        piece = before.long()
        # Python reads an index without dimensions; `take` keeps it a tensor.
        below = torch.take(share.cumsum(0) - share, piece)
        c = below + (t * pieces - before) * torch.take(share, piece)
        return LEAST_GAMMA + softplus(self.first) + self.log_span.exp() * c

    def grid(self) -> Tensor:
        """γ at the times 0, 1/T, …, 1: (T + 1,)."""
        ends = torch.arange(self.steps + 1, dtype=self.log_span.dtype, device=self.log_span.device)
        return self.gamma(ends / self.steps)

    def standard(self, x: Tensor) -> Tensor:
        """u of rows `x` (..., P)."""
        return (x - self.means) / self.unit

    def noised(self, u: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
        """z = α u + σ ε, (..., P), at γ (...)."""
        alpha, sigma = alpha_sigma(gamma.unsqueeze(-1))
        return alpha * u + sigma * noise


def alpha_sigma(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ at γ, any shape."""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def step_back(
    u: Tensor, noise: Tensor, gamma_s: Tensor, gamma_t: Tensor, eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean (..., P) and standard deviation () of z_s, given u and the noise ε in z_t, (..., P).

    η = 1 is q(z_s | z_t, x), and η = 0 adds no noise; every η has the same q(z_s | x) (Song, Meng,
    Ermon 2021, https://arxiv.org/abs/2010.02502, equation 7).
    """
    alpha, sigma = alpha_sigma(gamma_s)
    r = eta**2 * -torch.expm1(gamma_s - gamma_t)
    return alpha * u + sigma * (1 - r).sqrt() * noise, sigma * r.sqrt()


class StratifiedTimes(TorchDistribution):
    """t_n = (v + n/N) mod 1 with one v ~ U(0, 1) for all N: uniform and evenly spaced.

    The density is that of each t_n alone, 1. The distribution is for sums over n, whose variance it
    lowers (Kingma, Salimans, Poole, Ho 2021, appendix I).

    Args:
        like: a tensor with the dtype and device of the draws.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's own convention
    support = constraints.unit_interval
    has_rsample = True  # no parameter: no gradient is lost

    def __init__(self, like: Tensor, batch_shape: Any = ()) -> None:
        self._like = like.detach().new_empty(())
        super().__init__(torch.Size(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._like.new_full(self.batch_shape, 0.5)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "StratifiedTimes":
        return StratifiedTimes(self._like, batch_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  # as torch has it
        shape = self._extended_shape(sample_shape)
        count = shape.numel()
        strata = torch.arange(count, dtype=self._like.dtype, device=self._like.device) / count
        return ((torch.rand_like(self._like) + strata) % 1.0).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)
