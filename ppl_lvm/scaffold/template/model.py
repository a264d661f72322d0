"""Template: P columns explained by D latent causes.

    z_n ~ N(0, I)              latent    (N, D)
    x_n ~ N(f(z_n), σ² I)      observed  (N, P)

with f a small network and one σ for all columns.
"""

import pyro
import torch
from pyro.distributions import Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.nn import MLP


class Template(PyroModule):
    """Describe here how the data arise, in the order of the code.

    Arguments are attributes of the same names, so that a run can be loaded from its directory.

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
        """Rows `x` (N, P): sites of a single row belong in the plate "data"."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Initial values from the data (optional): the columns' means, and their spread as σ."""
        self.observed = x.shape[1]
        self.decoder = MLP(self.latent, self.observed, self.hidden)
        with torch.no_grad():
            self.decoder.layers[-1].get_parameter("bias").copy_(x.mean(0))
        self.scale = x.std()
