"""The ratio of two densities of which only draws are known, from telling their draws apart.

A discriminator a(x) is trained on x ~ p_D (data) and x ~ p_G (a generator's) by the logistic loss

    L(a) = E_D softplus(-a(x)) + E_G softplus(a(x)),

whose minimum over all functions is the log density ratio

    a*(x) = log p_D(x) - log p_G(x),    L(a*) = 2 log 2 - 2 JS(p_D, p_G).

What a generator descends, f(a(x)) averaged over its own draws with a held still, follows the
gradient of a divergence when a = a* (all checked against quadrature):

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
    """L of a at draws of p_D and of p_G, both as likely: a scalar, nats."""
    return softplus(-a_data).mean() + softplus(a_other).mean()


class Discriminator(nn.Module):
    """a(x): a network of one number a row, in the units of some rows.

    Args:
        x: rows (N, P), the more typical the better.
        hidden: widths of its hidden layers; `()` makes a linear.
    """

    def __init__(self, x: Tensor, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__()
        self.network = RowEncoder(x, outputs=1, hidden=tuple(hidden), activation="silu")

    def forward(self, x: Tensor) -> Tensor:
        """a (N,) of rows `x` (N, P)."""
        found: Tensor = self.network(x).squeeze(-1)
        return found


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
    """a ≈ log p_D - log p_G from rows x (N, P) of one and y (M, P) of the other.

    Both count alike, however many rows each has. All rows are seen at every step.

    Args:
        discriminator: any module (N, P) -> (N,), trained in place; by default a `Discriminator`.

    Raises:
        ValueError: for rows of different width, or none.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(
            f"A density ratio needs rows (N, P) and (M, P) of the same columns; got "
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
