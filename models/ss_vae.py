"""Semi-supervised VAE: a cluster of codes per class.

    c_n ~ Categorical(π)                                latent    (N,), enumerated
    z_n ~ N(μ_{c_n}, diag σ²_{c_n})                     latent    (N, D)
    y_n ~ Categorical((1 - ε) e_{c_n} + ε / C)          observed  (N,), where y_n ≥ 0
    x_n ~ p(x | decoder(z_n))                           observed  (N, P)

A label y_n is a noisy reading of the class c_n, wrong with probability ε (C - 1)/C; y_n = -1 is a
missing label. The class is enumerated in every row, so each row's bound is one on log p(x, y) where
its label is known and on log p(x) where it is not:

    E_q(z|x) [ log p(x | z) + log Σ_c π_c N(z; μ_c, σ_c²) p(y | c)^[y ≥ 0] - log q(z | x) ].

A new row belongs to class c with probability E_q(z|x)[p(c | z)].

References:
    Kingma, Rezende, Mohamed, Welling (2014). Semi-supervised learning with deep generative models.
    https://arxiv.org/abs/1406.5298 (there z and the class are independent causes of x)
    Jiang, Zheng, Tan, Tang, Zhou (2017). Variational deep embedding: an unsupervised and
    generative approach to clustering. https://arxiv.org/abs/1611.05148
"""

import pyro
import torch
from pyro.distributions import Categorical, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.core.validate import Count, Positive, Share
from ppl_lvm.models.parts.decoders.cluster_codes import LEAST_SCALE, principal_codes, train_decoder
from ppl_lvm.models.parts.decoders.decoder import Decoder
from ppl_lvm.models.parts.examples import example_bits
from ppl_lvm.models.parts.mixtures.moments import shrunken_moments, start_clusters


class SemiSupervisedVAE(PyroModule):
    """C classes of codes that explain P columns, some labels known.

    Args:
        classes: C.
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the decoder's hidden layers.
        likelihood, categories, floor: see `Decoder`.
        error: ε.
    """

    @staticmethod
    def example_batch(seed: int = 0) -> tuple[Tensor, ...]:
        """Bits (24, 10) and the labels of the first 20 rows."""
        (x,) = example_bits(seed)
        row = torch.arange(len(x))
        return x, torch.where(row < 20, row % 10, -1)

    weights: Tensor  # π (C,)
    means: Tensor  # μ (C, D)
    scales: Tensor  # σ (C, D)

    def __init__(
        self,
        classes: Count = 10,
        latent: Count = 8,
        observed: Count | None = None,
        hidden: tuple[Count, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: Count | None = None,
        floor: Positive = 1e-6,
        error: Share = 1e-3,
    ) -> None:
        super().__init__()
        if classes < 2 or not 0 < error < 1:
            raise ValueError(
                "A model of labels needs at least two classes and an error between 0 and 1; got "
                f"classes={classes}, error={error}."
            )
        self.classes = classes
        self.latent = latent
        self.observed = observed
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.error = error
        self.decoder = Decoder(latent, observed, hidden, likelihood, categories, floor)
        self.weights = PyroParam(torch.full((classes,), 1 / classes), constraints.simplex)
        self.means = PyroParam(torch.randn(classes, latent), constraints.real)
        self.scales = PyroParam(torch.ones(classes, latent), constraints.greater_than(LEAST_SCALE))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Rows `x` (N, P) and their labels `y` (N,), 0 to C - 1, or -1; None: no labels."""
        self.decoder.infer_sizes(x, owner=self)
        label = x.new_full((len(x),), -1).long() if y is None else y.long()
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(self.weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", Normal(self.means[c], self.scales[c]).to_event(1))
            read = Categorical(self._reading()[c]).mask(label >= 0)
            pyro.sample("y", read, obs=label.clamp(min=0))
            pyro.sample("x", self.decoder(z), obs=x)

    def decode(self, z: Tensor) -> Tensor:
        """Means of x (..., P), or p(x_p = c) (..., P, C), at codes `z` (..., D)."""
        return self.decoder.mean(z)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start from the labeled rows' principal components; without labels, from clusters.

        Raises:
            ValueError: for values outside their supports, or a class without a labeled row.
        """
        self.decoder.initialize(x, self)
        z = principal_codes(self.decoder.standardize(x), self.latent)
        if y is None or (y < 0).all():
            labeled, member = z, start_clusters(z, self.classes)
        else:
            self._check_labels(y)
            known = y >= 0
            labeled = z[known]
            member = torch.nn.functional.one_hot(y[known].long(), self.classes).to(z)
        _, means, scatter = shrunken_moments(labeled, member)
        scales = scatter.diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=2 * LEAST_SCALE)
        self.means, self.scales = means.to(self.means), scales.to(self.means)
        train_decoder(self.decoder, z.to(self.means), x)

    def _reading(self) -> Tensor:
        """p(y | c): (C, C)."""
        right = torch.eye(self.classes, dtype=self.means.dtype, device=self.means.device)
        return (1 - self.error) * right + self.error / self.classes

    def _check_labels(self, y: Tensor) -> None:
        if y.dim() != 1:
            raise ValueError(
                f"Labels have shape (N,), one for each row; got {tuple(y.shape)}. Pass y[:, 0]."
            )
        wrong = (y != y.round()) | (y < -1) | (y >= self.classes)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"Labels are whole numbers from 0 to {self.classes - 1}, or -1 where it is "
                f"missing; row {row} has {y[row].item():g}. Set classes, or renumber the labels."
            )
        missing = sorted(set(range(self.classes)) - set(y.long().tolist()))
        if missing:
            raise ValueError(
                f"No row is labeled {missing[0]}: a class needs at least one, to start from. "
                "Label one, or lower classes."
            )
