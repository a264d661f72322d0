"""Binary VAE: a variational autoencoder with Bernoulli codes.

    z_n ~ Bernoulli(σ(a))                     latent    (N, D)
    x_n ~ p(x | decoder(2 z_n - 1))           observed  (N, P)

Bits are not reparameterizable, so the guide's gradient comes from an estimator for discrete
latents: VIMCO for the importance-weighted bound; LeaveOneOut, DisARM, REBAR or RELAX for the ELBO.
With D up to about 16 every estimate can be checked against the sum over all 2^D codes.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks.
    https://arxiv.org/abs/1402.0030
"""

import pyro
import torch
from pyro.distributions import Bernoulli
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits


class BernoulliVAE(PyroModule):
    """D bits that explain P columns.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the decoder's hidden layers; `()` makes a sigmoid belief net.
        likelihood, categories, floor: see `Decoder`.
    """

    example_batch = staticmethod(example_bits)

    def __init__(
        self,
        latent: Count = 32,
        observed: Count | None = None,
        hidden: tuple[Count, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: Count | None = None,
        floor: Positive = 1e-6,
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
        """Means of x (..., P), or p(x_p = c) (..., P, C), at bits `z` (..., D)."""
        return self.decoder.mean(2 * z - 1)

    def initialize(self, x: Tensor) -> None:
        """Set P and the columns' means and standard deviation from rows `x` (N, P).

        Raises:
            ValueError: for values outside the likelihood's support, or constant data.
        """
        self.decoder.initialize(x, self)
