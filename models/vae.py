"""Variational autoencoder (VAE).

    z_n ~ N(0, I)                 latent    (N, D)
    x_n ~ p(x | decoder(z_n))     observed  (N, P)

with p Bernoulli, Gaussian or categorical: see `parts.decoders.decoder`. Other priors of z are the
VampPrior and a flow: see `parts.decoders.code_priors`.

Reference:
    Kingma, Welling (2014). Auto-encoding variational Bayes. https://arxiv.org/abs/1312.6114
"""

import pyro
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.decoders.code_priors import make_prior
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits


class VAE(PyroModule):
    """D normal codes that explain P columns.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the decoder's hidden layers.
        likelihood, categories, floor: see `Decoder`.
        prior: of z: "normal", "vamp(components=50)" or "flow(layers=4)".
    """

    example_batch = staticmethod(example_bits)

    def __init__(
        self,
        latent: Count = 8,
        observed: Count | None = None,
        hidden: tuple[Count, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: Count | None = None,
        floor: Positive = 1e-6,
        prior: str = "normal",
    ) -> None:
        super().__init__()
        self.latent = latent
        self.observed = observed
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.prior = prior
        self.code_prior = make_prior(prior, latent)
        self.decoder = Decoder(latent, observed, hidden, likelihood, categories, floor)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.decoder.infer_sizes(x, owner=self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.code_prior(x))
            pyro.sample("x", self.decoder(z), obs=x)

    def decode(self, z: Tensor) -> Tensor:
        """Means of x (..., P), or p(x_p = c) (..., P, C), at codes `z` (..., D)."""
        return self.decoder.mean(z)

    def initialize(self, x: Tensor) -> None:
        """Set P and the columns' means and standard deviation from rows `x` (N, P).

        Raises:
            ValueError: for values outside the likelihood's support, or constant data.
        """
        self.decoder.initialize(x, self)
        self.code_prior.initialize(x)
