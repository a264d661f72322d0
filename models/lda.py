"""Latent Dirichlet allocation (LDA).

    β_k ~ Dirichlet(η, …, η)                     global    (K, V)   topics
    θ_n ~ Dirichlet(α, …, α)                     latent    (N, K)   a document's proportions
    x_n ~ Multinomial(L_n, Σ_k θ_nk β_k)         observed  (N, V)   counts of its words

with the topic of every word marginalized and the length L_n fixed. The counts have their
multinomial coefficient, so the evidence is that of the counts and not of one order of words.

The K! orders of the topics are equally likely, and a guide covers one of them: its bound, and an
importance-weighted evidence, then fall short by up to log K! nats in all.

For a corpus of a few words `log_evidence` is exact: it sums over all topics of all words, the
Dirichlets integrated out.

References:
    Blei, Ng, Jordan (2003). Latent Dirichlet allocation. https://jmlr.org/papers/v3/blei03a.html
    Griffiths, Steyvers (2004). Finding scientific topics. https://doi.org/10.1073/pnas.0307752101
"""

from itertools import product
from typing import Any

import pyro
import torch
from pyro.distributions import Dirichlet
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.bag_of_words import BagOfWords, check_counts
from ppl_lvm.models.parts.examples import example_counts
from ppl_lvm.nn.lazy import LazilySized


class LatentDirichletAllocation(LazilySized, PyroModule):
    """K topics over V words.

    Args:
        topics: K.
        words: V. If None, inferred from the first batch.
        alpha: α, of proportions; below 1 a document has few topics.
        eta: η, of words; below 1 a topic has few words.
    """

    example_batch = staticmethod(example_counts)

    size_names = ("words",)
    words: int | None

    def __init__(
        self,
        topics: Count = 10,
        words: Count | None = None,
        alpha: Positive = 0.5,
        eta: Positive = 0.1,
    ) -> None:
        super().__init__()
        if topics < 2 or not (alpha > 0 and eta > 0):
            raise ValueError(
                "Latent Dirichlet allocation needs at least two topics, alpha > 0 and eta > 0; got "
                f"topics={topics}, alpha={alpha}, eta={eta}."
            )
        self.topics = topics
        self.alpha = alpha
        self.eta = eta
        self.set_sizes(words)

    def forward(self, x: Tensor) -> None:
        """Counts `x` (N, V)."""
        self.infer_sizes(x)
        # Topics are an event dimension, so that a plate of particles fits to their left.
        prior = Dirichlet(x.new_full((self.words or 1,), self.eta)).expand([self.topics])
        beta = pyro.sample("topics", prior.to_event(1))  # (…, K, V)
        with pyro.plate("data", len(x), dim=-1):
            theta = pyro.sample("theta", Dirichlet(x.new_full((self.topics,), self.alpha)))
            mixed = (theta[..., None, :] @ beta).squeeze(-2)  # (…, N, V)
            pyro.sample("x", BagOfWords(x.sum(-1), mixed), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Validate the counts.

        Raises:
            ValueError: for a value that is not a count, or a document without a word, with its row.
        """
        self.infer_sizes(x)
        check_counts(x)

    def initial_values(self, x: Tensor) -> dict[str, Tensor]:
        """Initial values for a guide: topics near the corpus, each tilted to random documents."""
        self.infer_sizes(x)
        share = torch.distributions.Dirichlet(torch.ones(len(x), self.topics)).sample().to(x)
        counts = share.mT @ x + x.mean(0) + 1e-2
        return {"topics": counts / counts.sum(-1, keepdim=True)}

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_1 … x_N), jointly, in nats: (). Sums over K^(all words) states.

        Raises:
            ValueError: for more than a million states.
        """
        self.infer_sizes(x)
        K, total = self.topics, int(x.sum())
        if K**total > 1_000_000:
            raise ValueError(
                f"{total} words in {K} topics have {K}^{total} states. Use run.log_evidence(x)."
            )
        x = x.double()
        document, word = [
            index.repeat_interleave(x[x > 0].long()) for index in (x > 0).nonzero().unbind(-1)
        ]
        z = torch.tensor(list(product(range(K), repeat=total)))  # (S, words)
        hot = torch.nn.functional.one_hot(z, K).double()  # (S, words, K)
        by_document = hot.mT @ torch.nn.functional.one_hot(document, len(x)).double()  # (S, K, N)
        by_word = hot.mT @ torch.nn.functional.one_hot(word, x.shape[1]).double()  # (S, K, V)
        log_p = _polya(by_document.mT, self.alpha).sum(-1) + _polya(by_word, self.eta).sum(-1)
        orders = (x.sum(-1) + 1).lgamma() - (x + 1).lgamma().sum(-1)
        return log_p.logsumexp(0) + orders.sum()

    def resize(self, *sizes: int, **like: Any) -> None:
        """No parameters: nothing to make."""


def _polya(counts: Tensor, concentration: float) -> Tensor:
    """log ∫ Π p_i^{n_i} Dirichlet(p; a, …, a) dp for counts n (…, I): (…)."""
    a: Any = torch.tensor(concentration, dtype=counts.dtype)
    size = counts.shape[-1]
    norm = (size * a).lgamma() - (counts.sum(-1) + size * a).lgamma()
    return norm + ((counts + a).lgamma() - a.lgamma()).sum(-1)
