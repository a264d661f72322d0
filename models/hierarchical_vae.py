"""Hierarchical VAE: L layers of normal codes.

    z_L,n ~ N(0, I)                                latent    (N, D_L), the top
    z_l,n ~ N(f_l(z_l+1,n), diag s_l²)             latent    (N, D_l), l = L - 1, …, 1
    x_n   ~ p(x | decoder(z_1,n))                  observed  (N, P)

with f_l a network and s_l a parameter. The sites are z1 (next to x) to zL (the top). Without hidden
layers and with a Gaussian likelihood the model is linear, and log p(x) is that of a normal.

References:
    Rezende, Mohamed, Wierstra (2014). Stochastic backpropagation and approximate inference in deep
    generative models. https://arxiv.org/abs/1401.4082
    Sønderby, Raiko, Maaløe, Sønderby, Winther (2016). Ladder variational autoencoders.
    https://arxiv.org/abs/1602.02282
"""

from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.distributions import Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits
from ppl_lvm.nn import MLP


class HierarchicalVAE(PyroModule):
    """Layers of normal codes that explain P columns.

    Args:
        latent: D_1, …, D_L, from the layer next to x to the top; two or more.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the hidden layers of every network.
        likelihood, categories, floor: see `Decoder`.
    """

    example_batch = staticmethod(example_bits)

    def __init__(
        self,
        latent: tuple[Count, ...] = (8, 4),
        observed: Count | None = None,
        hidden: tuple[Count, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: Count | None = None,
        floor: Positive = 1e-6,
    ) -> None:
        super().__init__()
        latent = tuple(latent)
        if len(latent) < 2:
            raise ValueError(
                "A hierarchical VAE needs the widths of two or more layers, from the lowest to "
                f"the top: latent=(8, 4). Got {latent}; with one layer use VAE."
            )
        self.latent = latent
        self.observed = observed
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.decoder = Decoder(latent[0], observed, hidden, likelihood, categories, floor)
        self.down = nn.ModuleList(MLP(above, width, hidden) for width, above in pairwise(latent))
        for layer, width in enumerate(latent[:-1], 1):  # s_l
            setattr(self, f"scale{layer}", PyroParam(torch.ones(width), constraints.positive))

    @property
    def layers(self) -> list[str]:
        """The sites, from z1 to the top."""
        return [f"z{layer}" for layer in range(1, len(self.latent) + 1)]

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.decoder.infer_sizes(x, owner=self)
        with pyro.plate("data", len(x), dim=-1):
            z = None
            for layer in range(len(self.latent), 0, -1):
                z = pyro.sample(f"z{layer}", self.prior(layer, z))
            pyro.sample("x", self.decoder(z), obs=x)

    def prior(self, layer: int, above: Tensor | None) -> Any:
        """p(z_l | z_l+1) for `above` = z_l+1 (..., D_l+1); None for the top layer."""
        if above is None:
            like = next(self.decoder.net.parameters())
            return Normal(like.new_zeros(self.latent[-1]), 1.0).to_event(1)
        return Normal(self.down[layer - 1](above), getattr(self, f"scale{layer}")).to_event(1)

    def decode(self, z1: Tensor) -> Tensor:
        """Means of x (..., P), or p(x_p = c) (..., P, C), at codes z_1 (..., D_1)."""
        return self.decoder.mean(z1)

    def initialize(self, x: Tensor) -> None:
        """Set P and the columns' means and standard deviation from rows `x` (N, P).

        Raises:
            ValueError: for values outside the likelihood's support, or constant data.
        """
        self.decoder.initialize(x, self)
