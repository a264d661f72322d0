"""Conditional VAE (CVAE).

    z_n ~ N(m(x_n), diag s²(x_n))           latent    (N, D)
    y_n ~ p(y | decoder(z_n, x_n))          observed  (N, P)

x (N, Q) is a condition without a distribution: the evidence is log p(y | x). The prior of the code
is learned, (m, log s) = prior(x). Sampling z from it and then y completes x. The guide sees both,
q(z | x, y).

Reference:
    Sohn, Lee, Yan (2015). Learning structured output representation using deep conditional
    generative models. https://papers.nips.cc/paper/5775 (equation 4)
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits
from ppl_lvm.models.parts.row_checks import check_complete
from ppl_lvm.nn import MLP
from ppl_lvm.nn.lazy import LazilySized, check_width
from ppl_lvm.nn.units import column_units, is_binary


class ConditionalVAE(LazilySized, PyroModule):
    """p(y | x) with D normal latents whose prior depends on x.

    Called with (x, y), or with rows that hold x in their first `given` columns and y in the others.

    Args:
        latent: D.
        given: Q, where x and y come as one tensor.
        hidden: widths of the hidden layers of prior and decoder.
        likelihood, categories, floor: of y, see `Decoder`.
    """

    @staticmethod
    def example_batch(seed: int = 0) -> tuple[Tensor, ...]:
        """Bits x (24, 6) and y (24, 10)."""
        (bits,) = example_bits(seed, 16)
        return bits[:, :6], bits[:, 6:]

    size_names = ("inputs",)
    inputs: int | None  # Q
    center: Tensor  # of the columns of x (Q,)
    unit: Tensor  # standard deviations of the columns of x; one for all if they are bits (Q,)

    def __init__(
        self,
        latent: Count = 8,
        given: Count | None = None,
        hidden: tuple[Count, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: Count | None = None,
        floor: Positive = 1e-6,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.given = given
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.decoder = Decoder(None, None, hidden, likelihood, categories, floor)
        self.set_sizes(None)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """x (N, Q) and y (N, P), or one tensor (N, Q + P)."""
        x, y = self.split(x, y)
        self.infer_sizes(x, y)
        condition = self._in_units(x)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.prior(condition).chunk(2, dim=-1)
            z = pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("y", self.decoder(z, condition), obs=y)

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        """Means of y (..., P) at codes `z` (..., D) and x (..., Q)."""
        return self.decoder.mean(z, self._in_units(x))

    def split(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, Q) and y (N, P) from two tensors or one.

        Raises:
            ValueError: for one tensor without `given`, or a tensor that is too narrow.
        """
        if y is not None:
            return x, y
        if self.given is None or x.dim() != 2 or x.shape[1] <= self.given:
            raise ValueError(
                f"ConditionalVAE takes (x, y), or rows that hold x in their first `given` columns "
                f"and y in the others; got one tensor {tuple(x.shape)} and given={self.given}."
            )
        return x[:, : self.given], x[:, self.given :]

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Set the sizes, and the columns' means and standard deviation, from the rows.

        Raises:
            ValueError: for a missing value in x, values of y outside the likelihood's support, or
                constant y.
        """
        x, y = self.split(x, y)
        self.infer_sizes(x, y)
        check_complete(x, type(self).__name__)
        self.decoder.initialize(y, self)
        center, unit = column_units(x, common=is_binary(x))
        self.center.copy_(center)
        self.unit.copy_(unit)

    def _in_units(self, x: Tensor) -> Tensor:
        return (x.to(self.center) - self.center) / self.unit

    def infer_sizes(self, *batch: Tensor, owner: nn.Module | None = None) -> None:
        super().infer_sizes(*batch, owner=owner)
        self.decoder.infer_sizes(batch[1], owner=self)

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        """Q of x (N, Q), of any dtype."""
        check_width(batch[0], self.inputs, name, None)
        return (batch[0].shape[1],)

    def resize(self, inputs: int, **like: Any) -> None:
        self.decoder.inputs = self.latent + inputs
        self.prior = MLP(inputs, 2 * self.latent, self.hidden)
        self.register_buffer("center", torch.zeros(inputs))
        self.register_buffer("unit", torch.ones(inputs))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["center"]),)
