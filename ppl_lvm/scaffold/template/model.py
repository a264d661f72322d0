"""Template: D hidden causes of P numbers.

    z_n ~ N(0, I)              latent    (N, D)
    x_n ~ N(f(z_n), σ² I)      observed  (N, P)

with f a small network and σ one number for all columns.
"""

import pyro
import torch
from pyro.distributions import Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.nn import MLP


class Template(PyroModule):
    """Tell the story of the data here, in the order of the code.

    Arguments are kept as attributes of their names: so a run is built again from its directory.

    Args:
        latent: D.
        observed: P. If None, `initialize` takes it from the data.
        hidden: widths of f's hidden layers; `()` makes f linear.
    """

    scale: Tensor  # σ

    def __init__(
        self, latent: int = 2, observed: int | None = None, hidden: tuple[int, ...] = (32,)
    ) -> None:
        super().__init__()
        self.latent, self.observed, self.hidden = latent, observed, tuple(hidden)
        self.scale = PyroParam(torch.tensor(1.0), constraints.positive)
        if observed is not None:
            self.decoder = MLP(latent, observed, self.hidden)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P): what each datum has of its own stands in the plate "data"."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def initialize(self, x: Tensor) -> None:
        """A start from the data (optional): columns begin at their means, σ at their spread."""
        self.observed = x.shape[1]
        self.decoder = MLP(self.latent, self.observed, self.hidden)
        with torch.no_grad():
            self.decoder.layers[-1].get_parameter("bias").copy_(x.mean(0))
        self.scale = x.std()
