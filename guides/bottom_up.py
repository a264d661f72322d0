"""Bottom-up guide of hierarchical models.

For layers of latents z_1 (above x) to z_L (the top), each the cause of the one below,

    q(z | x) = q(z_1 | x) Π_l q(z_l+1 | z_l),   q(z_l+1 | z_l) = N(μ_l(z_l), diag σ_l²(z_l)).

It runs against the arrows of the model: a network computes each layer from the one below. It serves
models with `latent` (widths, z_1 first) and `prior(l, above)`, as `HierarchicalVAE` has.
"""

from itertools import pairwise
from typing import Any

import pyro
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.authoring import DATA_PLATE
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.layer_widths import layer_widths
from ppl_lvm.guides.parts.site_guide import Latents, serving
from ppl_lvm.nn import MLP, RowEncoder


@serving(Latents.LAYERS, description="diagonal normals, each layer given the one below")
class BottomUp(PyroModule):
    """q(z_1 | x) q(z_2 | z_1) …, each layer given the one below.

    Args:
        model: a model with `latent`, the widths D_1, …, D_L.
        batch: its arguments: some typical rows.
        hidden: widths of the hidden layers of every network.

    Raises:
        ValueError: for a model without layers.
    """

    def __init__(self, model: Any, *batch: Tensor, hidden: tuple[Count, ...] = (128,)) -> None:
        super().__init__()
        widths = layer_widths(model, "BottomUp")
        first = RowEncoder(*batch, outputs=2 * widths[0], hidden=tuple(hidden))
        like = next(first.parameters())
        upper = [MLP(below, 2 * width, hidden).to(like) for below, width in pairwise(widths)]
        self.up = nn.ModuleList([first, *upper])

    def forward(self, *batch: Tensor) -> None:
        with pyro.plate(DATA_PLATE, len(batch[0]), dim=-1):
            below = batch
            for layer, net in enumerate(self.up, 1):
                loc, log_scale = net(*below).chunk(2, dim=-1)
                below = (pyro.sample(f"z{layer}", Normal(loc, log_scale.exp()).to_event(1)),)
