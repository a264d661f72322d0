"""VAE with a Gaussian-mixture prior of its codes.

    c_n ~ Categorical(π)                      latent    (N,), enumerated
    z_n ~ N(μ_{c_n}, diag σ²_{c_n})           latent    (N, D)
    x_n ~ p(x | decoder(z_n))                 observed  (N, P)

The cluster is enumerated inside the bound and needs no guide: with q(z | x) alone,

    log p(x) ≥ E_q(z|x) [ log p(x | z) + log Σ_c π_c N(z; μ_c, σ_c²) - log q(z | x) ],

and a row belongs to cluster c with probability E_q(z|x)[p(c | z)].

From random initial values the bound has a maximum with a single cluster, since the decoder can
shape it freely. So `initialize` starts from clusters of the data: the leading principal components
of x, scaled to variance 1, clustered by k-means, with a decoder trained to map them back to x.

References:
    Jiang, Zheng, Tan, Tang, Zhou (2017). Variational deep embedding: an unsupervised and
    generative approach to clustering. https://arxiv.org/abs/1611.05148 (its initial values come
    from a trained autoencoder; its q(c | x) is the sum over c here)
    Dilokthanakul et al. (2016). Deep unsupervised clustering with Gaussian mixture variational
    autoencoders. https://arxiv.org/abs/1611.02648
"""

import pyro
import torch
from pyro.distributions import Categorical, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.decoders.cluster_codes import LEAST_SCALE, principal_codes, train_decoder
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits
from ppl_lvm.models.parts.mixtures.moments import moments, start_clusters


class GaussianMixtureVAE(PyroModule):
    """K clusters of codes that explain P columns.

    Args:
        components: K.
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the decoder's hidden layers.
        likelihood, categories, floor: see `Decoder`.
    """

    example_batch = staticmethod(example_bits)

    weights: Tensor  # π (K,)
    means: Tensor  # μ (K, D)
    scales: Tensor  # σ (K, D)

    def __init__(
        self,
        components: Count = 10,
        latent: Count = 8,
        observed: Count | None = None,
        hidden: tuple[Count, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: Count | None = None,
        floor: Positive = 1e-6,
    ) -> None:
        super().__init__()
        self.components = components
        self.latent = latent
        self.observed = observed
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.decoder = Decoder(latent, observed, hidden, likelihood, categories, floor)
        if components > 1:
            weights = torch.full((components,), 1 / components)
            self.weights = PyroParam(weights, constraints.simplex)
        else:  # constant 1: nothing to learn
            self.register_buffer("weights", torch.ones(1))
        # Equal means would receive equal gradients and stay equal.
        self.means = PyroParam(torch.randn(components, latent), constraints.real)
        self.scales = PyroParam(
            torch.ones(components, latent), constraints.greater_than(LEAST_SCALE)
        )

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.decoder.infer_sizes(x, owner=self)
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(self.weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", Normal(self.means[c], self.scales[c]).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def decode(self, z: Tensor) -> Tensor:
        """Means of x (..., P), or p(x_p = c) (..., P, C), at codes `z` (..., D)."""
        return self.decoder.mean(z)

    def initialize(self, x: Tensor) -> None:
        """Start from clusters of principal components of the rows `x` (N, P).

        Raises:
            ValueError: for values outside the likelihood's support, fewer distinct rows than
                clusters, or rows that vary in fewer directions than there are codes.
        """
        self.decoder.initialize(x, self)
        z = principal_codes(self.decoder.standardize(x), self.latent)
        weights, means, scatter = moments(z, start_clusters(z, self.components))
        scales = scatter.diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=2 * LEAST_SCALE)
        dtype = self.means.dtype
        self.weights, self.means = weights.to(dtype), means.to(dtype)
        self.scales = scales.to(dtype)
        train_decoder(self.decoder, z.to(self.decoder.dtype), x)
