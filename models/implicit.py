"""Implicit model: a generator network without a likelihood.

    z_n ~ N(0, I)      latent         (N, D)
    x_n = G(z_n)       an outcome     (N, P)

It can be sampled and has no density: x lies on a surface of D dimensions. So there is no
likelihood, no guide, and no Pyro program of data. `fit` rejects it;
`ppl_lvm.fitting.adversarial.fit_adversarial` trains it.

Reference:
    Mohamed, Lakshminarayanan (2016). Learning in implicit generative models.
    https://arxiv.org/abs/1610.03483
"""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.validate import Count
from ppl_lvm.models.parts.row_checks import check_complete, column_moments
from ppl_lvm.nn import MLP
from ppl_lvm.nn.lazy import LazilySized


class Implicit(LazilySized):
    """P columns generated from D noise variables.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of G's hidden layers; `()` makes it linear.

    Raises:
        ValueError: for latent < 1.
    """

    means: Tensor  # of the data's columns (P,), and their standard deviations
    scales: Tensor

    @checked
    def __init__(
        self, latent: Count = 2, observed: Count | None = None, hidden: tuple[Count, ...] = (64, 64)
    ) -> None:
        super().__init__()
        self.latent, self.hidden = latent, tuple(hidden)
        self.set_sizes(observed)

    def forward(self, *batch: Tensor) -> None:
        """Raise, since the model has no likelihood.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Implicit has no likelihood: there is no bound to train or to judge it by. Train it "
            "with ppl_lvm.fitting.adversarial.fit_adversarial (--objective adversarial), judge "
            "it by the result's two_sample(x)."
        )

    def push(self, z: Tensor) -> Tensor:
        """G(z) (..., P) of noise (..., D)."""
        return self.means + self.scales * self.network(z)

    def draw(self, n: int) -> Tensor:
        """n outcomes (n, P), with gradients.

        Raises:
            ValueError: for a model without a batch.
        """
        if self.observed is None:
            raise ValueError(
                "Implicit: its number of columns is not known. Build it with observed=P."
            )
        return self.push(torch.randn(n, self.latent).to(self.means))

    def initialize(self, x: Tensor) -> None:
        """Set P, means and standard deviations of the columns from rows `x` (N, P).

        Raises:
            ValueError: for another shape, constant data, or missing values.
        """
        self.infer_sizes(x)
        check_complete(x, type(self).__name__)
        means, variance = column_moments(x)
        self.means.copy_(means)
        self.scales.copy_(variance.sqrt())

    def resize(self, observed: int, **like: Any) -> None:
        self.register_buffer("means", torch.zeros(observed))
        self.register_buffer("scales", torch.ones(observed))
        self.network = MLP(self.latent, observed, self.hidden, activation="silu")

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["means"]),)
