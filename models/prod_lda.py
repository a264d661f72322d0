"""ProdLDA: a topic model with a product of experts.

    h_n ~ N(m, diag s²)                            latent    (N, K)
    x_n ~ Multinomial(L_n, softmax(B softmax(h_n) + b))   observed  (N, V)

with m and s² such that softmax(h) is about Dirichlet(α, …, α) (Laplace's approximation):

    m = 0,    s² = (1 - 2/K) / α + 1 / (K α),

which has 1 - 1/K of the Dirichlet's variance, since it neglects the correlation of h's entries.

A word's probability is a product of topics' weights, p_v ∝ e^{b_v} Π_k e^{B_vk θ_k}. Several topics
can agree on a word and exclude others, which a mixture of topics cannot, and topics are sharper.
b is the corpus's own frequency of words, so topics are deviations from it.

Unlike the paper this model has no batch normalization and no dropout: with them a document's
likelihood would depend on the others in its batch, and the bound would not be a bound.

Reference:
    Srivastava, Sutton (2017). Autoencoding variational inference for topic models.
    https://arxiv.org/abs/1703.01488, equations 2 and 4.
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.bag_of_words import BagOfWords, check_counts
from ppl_lvm.models.parts.examples import example_counts
from ppl_lvm.nn.lazy import LazilySized


class ProdLDA(LazilySized, PyroModule):
    """A product of K experts over V words.

    Args:
        topics: K.
        words: V. If None, inferred from the first batch or a loaded state.
        alpha: α; below 1 a document has few topics.
    """

    example_batch = staticmethod(example_counts)

    size_names = ("words",)
    words: int | None
    B: Tensor  # (V, K)
    b: Tensor  # (V,)

    def __init__(
        self, topics: Count = 10, words: Count | None = None, alpha: Positive = 0.5
    ) -> None:
        super().__init__()
        if topics < 2 or not alpha > 0:
            raise ValueError(
                f"ProdLDA needs at least two topics and alpha > 0; got topics={topics}, "
                f"alpha={alpha}."
            )
        self.topics = topics
        self.alpha = alpha
        self.set_sizes(words)

    def forward(self, x: Tensor) -> None:
        """Counts `x` (N, V)."""
        self.infer_sizes(x)
        K = self.topics
        spread = ((1 - 2 / K) / self.alpha + 1 / (K * self.alpha)) ** 0.5
        with pyro.plate("data", len(x), dim=-1):
            h = pyro.sample("h", Normal(x.new_zeros(K, dtype=self.b.dtype), spread).to_event(1))
            pyro.sample("x", BagOfWords(x.sum(-1), self.decode(h)), obs=x)

    def decode(self, h: Tensor) -> Tensor:
        """Probabilities of words (…, V) at codes `h` (…, K)."""
        return (h.softmax(-1) @ self.B.mT + self.b).softmax(-1)

    def topic_words(self) -> Tensor:
        """Word probabilities of a document of one topic only, for each topic: (K, V)."""
        return (self.B.mT + self.b).softmax(-1).detach()

    def initialize(self, x: Tensor) -> None:
        """Start from the corpus's frequencies of words, with small random topics.

        Raises:
            ValueError: for a value that is not a count, or a document without a word, with its row.
        """
        self.infer_sizes(x)
        check_counts(x)
        with torch.no_grad():
            self.b.copy_((x.sum(0) + 0.5).log() - (x.sum() + 0.5 * x.shape[1]).log())
            self.B.copy_(0.5 * torch.randn(self.B.shape))

    def resize(self, words: int, **like: Any) -> None:
        with preserve_rng():  # so that `initialize` draws the same numbers in either order
            self.B = nn.Parameter(0.5 * torch.randn(words, self.topics, **like))
        self.b = nn.Parameter(torch.zeros(words, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["b"]),)
