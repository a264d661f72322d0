"""Ladder guide of hierarchical models.

For layers of latents z_1 (above x) to z_L (the top), each the cause of the one below,

    q(z | x) = q(z_L | x) Π_l q(z_l | z_l+1, x).

It runs along the arrows and shares the model's p(z_l | z_l+1) = N(m, diag s²). The evidence of x
about layer l, a normal N(μ̂_l(x), diag σ̂_l²(x)), is multiplied with this prior:

    1/σ_l² = 1/σ̂_l² + 1/s²,   μ_l = σ_l² (μ̂_l/σ̂_l² + m/s²),   q(z_l | z_l+1, x) = N(μ_l, diag σ_l²).

A layer without evidence from x is drawn from the prior, so that its KL term is zero. The guide
serves models with `latent` (widths, z_1 first) and `prior(l, above)`, as `HierarchicalVAE` has.

Reference:
    Sønderby, Raiko, Maaløe, Sønderby, Winther (2016). Ladder variational autoencoders.
    https://arxiv.org/abs/1602.02282, equations 12 to 19
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.authoring import DATA_PLATE
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.layer_widths import layer_widths
from ppl_lvm.guides.parts.site_guide import Latents, serving
from ppl_lvm.nn import MLP, RowEncoder


@serving(Latents.LAYERS, description="evidence of the rows times the model's prior in each layer")
class Ladder(PyroModule):
    """q(z_L | x) … q(z_1 | z_2, x), the evidence of x multiplied with the model's prior.

    Args:
        model: a model with `latent`, the widths D_1, …, D_L, and `prior(l, above)`.
        batch: its arguments: some typical rows.
        hidden: widths of the hidden layers of every network.

    Raises:
        ValueError: for a model without layers.
    """

    def __init__(self, model: Any, *batch: Tensor, hidden: tuple[Count, ...] = (128,)) -> None:
        super().__init__()
        widths = layer_widths(model, "Ladder")
        # In a tuple: the parameters of the model are not parameters of the guide.
        self._model = (model,)
        features = hidden[-1] if hidden else 2 * sum(widths)
        first = RowEncoder(*batch, outputs=features, hidden=tuple(hidden))
        like = next(first.parameters())
        upper = [MLP(features, features, hidden).to(like) for _ in widths[1:]]
        self.up = nn.ModuleList([first, *upper])
        self.heads = nn.ModuleList(nn.Linear(features, 2 * width).to(like) for width in widths)

    def forward(self, *batch: Tensor) -> None:
        (model,) = self._model
        evidence = self._evidence(*batch)
        above = None
        with pyro.plate(DATA_PLATE, len(batch[0]), dim=-1):
            for layer in range(len(evidence), 0, -1):
                prior = model.prior(layer, above).base_dist
                q = _product(*evidence[layer - 1], prior.loc, prior.scale.log())
                above = pyro.sample(f"z{layer}", q.to_event(1))

    def _evidence(self, *batch: Tensor) -> list[tuple[Tensor, Tensor]]:
        """μ̂_l and log σ̂_l (B, D_l) of every layer, z_1 first."""
        evidence, features = [], batch
        for up, head in zip(self.up, self.heads, strict=True):
            features = (up(*features),)
            loc, log_scale = head(features[0]).chunk(2, dim=-1)
            evidence.append((loc, log_scale))
        return evidence


def _product(loc: Tensor, log_scale: Tensor, other: Tensor, other_log_scale: Tensor) -> Normal:
    """The normal whose density is the product of two normals', up to its integral.

    Computed by logarithms of the precisions, which do not overflow where one normal is very narrow.
    """
    log_precision, other_log_precision = -2 * log_scale, -2 * other_log_scale
    share = (log_precision - other_log_precision).sigmoid()
    scale = (-0.5 * torch.logaddexp(log_precision, other_log_precision)).exp()
    return Normal(other + share * (loc - other), scale)
