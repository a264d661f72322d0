"""Density ratio estimation by logistic regression.

A discriminator a(x) is trained on x ~ p_D (data) and x ~ p_G (generator) by the logistic loss

    L(a) = E_D softplus(-a(x)) + E_G softplus(a(x)),

whose minimum over all functions is the log density ratio

    a*(x) = log p_D(x) - log p_G(x),    L(a*) = 2 log 2 - 2 JS(p_D, p_G).

A generator minimizes the mean of f(a(x)) over its samples while a is fixed. For a = a* this is the
gradient of a divergence (all checked against quadrature):

    minimax               f = -softplus(a) = log(1 - σ(a))    2 JS(p_D, p_G)
    non_saturating        f = softplus(-a) = -log σ(a)        KL(p_G ‖ p_D) - 2 JS(p_D, p_G)
    maximum_likelihood    f = -exp(a)                         KL(p_D ‖ p_G)

References:
    Goodfellow et al. (2014). Generative adversarial nets. https://arxiv.org/abs/1406.2661
    Goodfellow (2015). On distinguishability criteria for estimating generative models.
    https://arxiv.org/abs/1412.6515
    Arjovsky, Bottou (2017). Towards principled methods for training generative adversarial
    networks. https://arxiv.org/abs/1701.04862, theorem 2.5
    Mohamed, Lakshminarayanan (2016). Learning in implicit generative models.
    https://arxiv.org/abs/1610.03483
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.nn import RowEncoder


def minimax(a: Tensor) -> Tensor:
    """log(1 - σ(a)), any shape."""
    return -softplus(a)


def non_saturating(a: Tensor) -> Tensor:
    """-log σ(a), any shape."""
    return softplus(-a)


def maximum_likelihood(a: Tensor) -> Tensor:
    """-exp(a), any shape."""
    return -a.exp()


def logistic_loss(a_data: Tensor, a_other: Tensor) -> Tensor:
    """L of a at samples of p_D and of p_G with equal weights: a scalar, nats."""
    return softplus(-a_data).mean() + softplus(a_other).mean()


class Discriminator(nn.Module):
    """Network a(x) with one output per row, standardized by example rows.

    Args:
        x: typical rows (N, P).
        hidden: widths of the hidden layers; `()` is linear.
    """

    def __init__(self, x: Tensor, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__()
        self.network = RowEncoder(x, outputs=1, hidden=tuple(hidden), activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        """a (N,) of rows `x` (N, P)."""
        a: Tensor = self.network(x).squeeze(-1)
        return a


def fit_log_ratio(
    x: Tensor,
    y: Tensor,
    discriminator: nn.Module | None = None,
    *,
    num_steps: int = 300,
    lr: float = 0.01,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Fit a ≈ log p_D - log p_G to rows x (N, P) of p_D and y (M, P) of p_G.

    Both have the same weight, however many rows each has. Every step uses all rows.

    Args:
        discriminator: any module (N, P) -> (N,), trained in place; default a `Discriminator`.

    Raises:
        ValueError: rows of different width, or no rows.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(
            "density ratio: x and y must be rows (N, P) and (M, P) of the same columns; got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    with preserve_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        a = Discriminator(torch.cat([x, y])) if discriminator is None else discriminator
        optimizer = torch.optim.AdamW(a.parameters(), lr=lr, weight_decay=weight_decay)
        for _ in range(num_steps):
            optimizer.zero_grad()
            logistic_loss(a(x), a(y)).backward()
            optimizer.step()
    return a
