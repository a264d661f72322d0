"""Multilayer perceptron."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
}
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class MLP(nn.Module):
    """h₀ = x, hᵢ = activation(norm(Wᵢ hᵢ₋₁ + bᵢ)), output W h + b.

    Args:
        inputs: length of an input row.
        outputs: length of an output row.
        hidden: widths of the hidden layers; `()` makes the network linear.
        activation: one of `ACTIVATIONS`.
        norm: "layer" (per row), "batch" (each feature over the rows, so that a row's output depends
            on its batch), or None.

    Raises:
        ValueError: for an unknown name or an invalid width.
    """

    def __init__(
        self,
        inputs: Count,
        outputs: Count,
        hidden: tuple[Count, ...] = (128,),
        activation: str = "relu",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        widths = (inputs, *hidden, outputs)
        if min(widths) < 1:
            raise ValueError(f"An MLP needs widths of at least 1; these are {widths}.")
        make = choose("activation", activation, ACTIVATIONS)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers.append(nn.Linear(before, after))
            if norm is not None:
                layers.append(choose("norm", norm, NORMS)(after))
            layers.append(make())
        layers.append(nn.Linear(widths[-2], outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows `x` (..., inputs) to (..., outputs)."""
        out: Tensor = self.layers(x if x.is_floating_point() else x.to(torch.get_default_dtype()))
        return out


def choose(what: str, name: str, table: dict[str, type[nn.Module]]) -> type[nn.Module]:
    """The class of that name, or an error that lists them."""
    if name not in table:
        raise ValueError(unknown(what, name, table))
    return table[name]
