"""Auto-encoder whose codes are bits: which of D causes are present.

    z_n ~ Bernoulli(σ(a))                     latent    (N, D)
    x_n ~ p(x | decoder(2 z_n - 1))           observed  (N, P)

No gradient flows through a bit, so the guide's comes from an estimator for discrete latents:
VIMCO for the importance-weighted bound; for the ELBO LeaveOneOut, DisARM, REBAR or RELAX. With D
up to about 16 every estimate can be checked against the sum over all 2^D codes.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks.
    https://arxiv.org/abs/1402.0030
"""

import pyro
import torch
from pyro.distributions import Bernoulli
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits


class BernoulliVAE(PyroModule):
    """D bits behind P columns.

    Args:
        latent: D.
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        hidden: widths of the decoder's hidden layers; `()` makes a sigmoid belief net.
        likelihood, categories, floor: see `Decoder`.
    """

    example_batch = staticmethod(example_bits)

    def __init__(
        self,
        latent: int = 32,
        observed: int | None = None,
        hidden: tuple[int, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: int | None = None,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.observed = observed
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.decoder = Decoder(latent, observed, hidden, likelihood, categories, floor)
        self.a = nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.decoder.infer_sizes(x, owner=self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.a).to_event(1))
            pyro.sample("x", self.decoder(2 * z - 1), obs=x)

    def decode(self, z: Tensor) -> Tensor:
        """What is expected of x given bits (..., D): means (..., P), or p(x_p = c) (..., P, C)."""
        return self.decoder.mean(2 * z - 1)

    def initialize(self, x: Tensor) -> None:
        """Take P, and the columns' means and spread, from the rows `x` (N, P).

        Raises:
            ValueError: for values outside the likelihood's support, or data that never changes.
        """
        self.decoder.initialize(x, self)
