"""Guide of Template: q(z_n | x_n) = N(μ(x_n), diag σ²(x_n)).

μ and log σ are the outputs of one encoder.
"""

import pyro
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.nn import RowEncoder
from ppl_lvm.scaffold.template.model import Template


class TemplateGuide(PyroModule):
    """Built from the model and some rows, called like the model.

    Args:
        model: the model whose latent sites it samples.
        batch: rows that give the units of the columns.
        hidden: widths of the encoder's hidden layers.
    """

    def __init__(self, model: Template, *batch: Tensor, hidden: tuple[int, ...] = (32,)) -> None:
        super().__init__()
        self.encoder = RowEncoder(*batch, outputs=2 * model.latent, hidden=tuple(hidden))

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P): the same sites, in the same plates, as the model's latents."""
        loc, log_scale = self.encoder(x).chunk(2, -1)  # (N, D) each
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))
