"""An encoder that reads the rows and not their labels: q(z_n | x_n) for a model of (x, y).

Labels are missing in most rows, and in all those that are to be classified. An encoder that reads
them would learn from the few rows that have one; this one serves all rows alike. What the labels
say reaches the codes through the model.

Serves what AmortizedNormal serves, for batches (x, …) of which only the first tensor is read.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.guides.amortized import AmortizedNormal
from ppl_lvm.nn import RowEncoder
from ppl_lvm.programs.signatures import signature


class FirstOnly(nn.Module):
    """A network of the first tensor of a batch; the others are not read."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *unread: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def label_free(
    model: Callable[..., Any], *batch: Tensor, hidden: tuple[int, ...] = (128,)
) -> AmortizedNormal:
    """An AmortizedNormal of x alone, for a model of (x, y).

    Args:
        model: the model.
        batch: x (B, P), and whatever else the model is called with.
        hidden: widths of the encoder's hidden layers.

    Raises:
        ValueError: for a latent that AmortizedNormal does not serve, or whose size it cannot tell.
    """
    declared = signature(model, *batch)
    sizes = [site.event_shape.numel() for site in declared.latents if not site.discrete]
    encoder = RowEncoder(batch[0], outputs=2 * sum(sizes), hidden=tuple(hidden))
    return AmortizedNormal(declared, *batch, encoder=FirstOnly(encoder))
