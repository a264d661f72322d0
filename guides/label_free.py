"""Amortized normal that reads the rows and not their labels.

    q(z_n | x_n) for a model of (x, y)

Labels are missing in most rows, and in all rows that are to be classified. An encoder of (x, y)
would learn from the few labeled rows; this one reads x only. Labels act on the latents through the
model.

Serves models that AmortizedNormal serves, for batches (x, …) of which only the first tensor is
read.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.authoring import signature
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.amortized import AmortizedNormal
from ppl_lvm.guides.parts.site_guide import Latents, serving
from ppl_lvm.nn import RowEncoder


class FirstTensorEncoder(nn.Module):
    """A network of the first tensor of a batch; the others are not read."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


@serving(
    Latents.LABELED_ROWS, description="diagonal normals from one encoder of the unlabeled rows"
)
@checked
def label_free(
    model: Callable[..., Any], *batch: Tensor, hidden: tuple[Count, ...] = (128,)
) -> AmortizedNormal:
    """An AmortizedNormal of x alone, for a model of (x, y).

    Args:
        model: the model.
        batch: x (B, P), and the other arguments of the model.
        hidden: widths of the encoder's hidden layers.

    Raises:
        ValueError: for a latent that AmortizedNormal does not serve, or of unknown size.
    """
    model_signature = signature(model, *batch)
    sizes = [site.event_shape.numel() for site in model_signature.latents if not site.discrete]
    encoder = RowEncoder(batch[0], outputs=2 * sum(sizes), hidden=tuple(hidden))
    return AmortizedNormal(model_signature, *batch, encoder=FirstTensorEncoder(encoder))
