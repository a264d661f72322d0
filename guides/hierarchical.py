"""Two guides for layers of codes z_1 (above x) to z_L (the top), each the cause of the one below.

    BottomUp   q(z | x) = q(z_1 | x) Π_l q(z_l+1 | z_l)
    Ladder     q(z | x) = q(z_L | x) Π_l q(z_l | z_l+1, x)

Both let layers depend on each other, as the posterior does. `BottomUp` runs against the model's
arrows: a network reads each layer off the one below,

    q(z_l+1 | z_l) = N(μ_l(z_l), diag σ_l²(z_l)).

`Ladder` runs along them, and shares the model's p(z_l | z_l+1) = N(m, diag s²). What x says of
layer l, a normal N(μ̂_l(x), diag σ̂_l²(x)), is multiplied with what the layer above says:

    1/σ_l² = 1/σ̂_l² + 1/s²,   μ_l = σ_l² (μ̂_l/σ̂_l² + m/s²),   q(z_l | z_l+1, x) = N(μ_l, diag σ_l²).

A layer of which x says nothing costs nothing there: it is drawn from the prior.

Serve models with `latent` (widths, z_1 first) and `prior(l, above)`, as `HierarchicalVAE` has.

Reference:
    Sønderby, Raiko, Maaløe, Sønderby, Winther (2016). Ladder variational autoencoders.
    https://arxiv.org/abs/1602.02282, equations 12 to 19
"""

from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.nn import MLP, RowEncoder
from ppl_lvm.programs.minibatch import DATA_PLATE


class BottomUp(PyroModule):
    """q(z_1 | x) q(z_2 | z_1) …, each layer read off the one below.

    Args:
        model: with `latent`, the widths D_1, …, D_L.
        batch: what the model is called with: some typical rows.
        hidden: widths of the hidden layers of every network.

    Raises:
        ValueError: for a model without layers.
    """

    def __init__(self, model: Any, *batch: Tensor, hidden: tuple[int, ...] = (128,)) -> None:
        super().__init__()
        widths = _layers(model, "BottomUp")
        first = RowEncoder(*batch, outputs=2 * widths[0], hidden=tuple(hidden))
        like = next(first.parameters())
        later = [MLP(below, 2 * own, hidden).to(like) for below, own in pairwise(widths)]
        self.up = nn.ModuleList([first, *later])

    def forward(self, *batch: Tensor) -> None:
        with pyro.plate(DATA_PLATE, len(batch[0]), dim=-1):
            below = batch
            for layer, net in enumerate(self.up, 1):
                loc, log_scale = net(*below).chunk(2, dim=-1)
                below = (pyro.sample(f"z{layer}", Normal(loc, log_scale.exp()).to_event(1)),)


class Ladder(PyroModule):
    """q(z_L | x) … q(z_1 | z_2, x), what x says multiplied with what the model's prior says.

    Args:
        model: with `latent`, the widths D_1, …, D_L, and `prior(l, above)`.
        batch: what the model is called with: some typical rows.
        hidden: widths of the hidden layers of every network.

    Raises:
        ValueError: for a model without layers.
    """

    def __init__(self, model: Any, *batch: Tensor, hidden: tuple[int, ...] = (128,)) -> None:
        super().__init__()
        widths = _layers(model, "Ladder")
        # In a tuple, so that the model's parameters are not counted as the guide's.
        self._shared = (model,)
        features = hidden[-1] if hidden else 2 * sum(widths)
        first = RowEncoder(*batch, outputs=features, hidden=tuple(hidden))
        like = next(first.parameters())
        later = [MLP(features, features, hidden).to(like) for _ in widths[1:]]
        self.up = nn.ModuleList([first, *later])
        self.say = nn.ModuleList(nn.Linear(features, 2 * own).to(like) for own in widths)

    def forward(self, *batch: Tensor) -> None:
        (model,) = self._shared
        said = self._read(*batch)
        above = None
        with pyro.plate(DATA_PLATE, len(batch[0]), dim=-1):
            for layer in range(len(said), 0, -1):
                prior = model.prior(layer, above).base_dist
                own = _product(*said[layer - 1], prior.loc, prior.scale.log())
                above = pyro.sample(f"z{layer}", own.to_event(1))

    def _read(self, *batch: Tensor) -> list[tuple[Tensor, Tensor]]:
        """μ̂_l and log σ̂_l (B, D_l) of every layer, z_1 first."""
        found, features = [], batch
        for up, say in zip(self.up, self.say, strict=True):
            features = (up(*features),)
            loc, log_scale = say(features[0]).chunk(2, dim=-1)
            found.append((loc, log_scale))
        return found


def _product(loc: Tensor, log_scale: Tensor, other: Tensor, other_log_scale: Tensor) -> Normal:
    """The normal whose density is the product of two normals', up to its integral.

    By logarithms of the precisions, which do not run over where one normal is very narrow.
    """
    log_precision, other_log_precision = -2 * log_scale, -2 * other_log_scale
    share = (log_precision - other_log_precision).sigmoid()
    scale = (-0.5 * torch.logaddexp(log_precision, other_log_precision)).exp()
    return Normal(other + share * (loc - other), scale)


def _layers(model: Any, guide: str) -> tuple[int, ...]:
    """The widths of a model's layers.

    Raises:
        ValueError: for a model without layers.
    """
    widths = getattr(model, "latent", None)
    if not isinstance(widths, tuple) or not hasattr(model, "prior"):
        raise ValueError(
            f"{guide} serves models with layers of codes (latent=(8, 4), and prior(l, above)), "
            f"such as HierarchicalVAE; {type(model).__name__} has none. Use AmortizedNormal."
        )
    return widths
