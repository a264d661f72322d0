"""Multinomial word counts of documents of given lengths.

    p(x | L, p) = L! / Π_v x_v!  Π_v p_v^{x_v},    Σ_v x_v = L,

with a length for every document.
"""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class BagOfWords(TorchDistribution):
    """Counts (…, V) of documents of given lengths.

    Args:
        length: L (…,), whole numbers; a constant of the model.
        probs: p (…, V), which sum to one.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False
    conditioned_on: ClassVar[str] = "their sum"  # see `ppl_lvm.runs.comparability`

    def __init__(self, length: Tensor, probs: Tensor) -> None:
        batch = torch.broadcast_shapes(length.shape, probs.shape[:-1])
        self.length = length.expand(batch)
        self.probs = probs.expand(*batch, probs.shape[-1])
        super().__init__(batch, probs.shape[-1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BagOfWords":
        batch = torch.Size(batch_shape)
        return BagOfWords(
            self.length.expand(batch), self.probs.expand(*batch, self.probs.shape[-1])
        )

    @property
    def mean(self) -> Tensor:
        """L p."""
        return self.length[..., None] * self.probs

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Counts of L words drawn with replacement."""
        shape = torch.Size(sample_shape) + self.batch_shape
        length = self.length.expand(shape).reshape(-1)
        probs = self.probs.detach().expand(*shape, -1).reshape(-1, self.probs.shape[-1])
        longest = max(1, int(length.max()))
        words = torch.multinomial(probs, longest, replacement=True)  # (docs, longest)
        present = (torch.arange(longest, device=words.device) < length[:, None]).to(probs)
        counts = torch.zeros_like(probs).scatter_add_(1, words, present)
        return counts.reshape(*shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts (…, V) that sum to L, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_p = self.probs.clamp(min=torch.finfo(self.probs.dtype).tiny).log()
        orders = (self.length + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return orders + (value * log_p).sum(-1)


def check_counts(x: Tensor) -> None:
    """Reject a tensor that is not a corpus of counts.

    Raises:
        ValueError: with the row, the column and the remedy.
    """
    wrong = (x < 0) | (x != x.round())
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"A corpus holds counts of words, but row {row}, column {column} is "
            f"{x[row, column].item():g} ({int(wrong.sum())} such values in all). Give one row per "
            "document and one column per word."
        )
    if (empty := x.sum(-1) == 0).any():
        raise ValueError(
            f"Document {int(empty.nonzero()[0])} has no word ({int(empty.sum())} such in all). "
            "Leave it out."
        )
