"""Topics as a person reads them: their most likely words, and whether these belong together.

The normalised pointwise mutual information of two words, from the share p of documents that have
them,

    NPMI(v, w) = log[ p(v, w) / (p(v) p(w)) ] / -log p(v, w),    -1 ≤ NPMI ≤ 1,

is 1 where they always come together, 0 where independent, -1 where never together (the limit). A
topic's coherence is its mean over all pairs of the topic's most likely words.

References:
    Bouma (2009). Normalized (pointwise) mutual information in collocation extraction.
    Lau, Newman, Baldwin (2014). Machine reading tea leaves: automatically evaluating topic
    coherence and topic model quality. https://aclanthology.org/E14-1056
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor


def top_words(topics: Tensor, count: int = 10) -> Tensor:
    """Numbers of the most likely words of `topics` (K, V), most likely first: (K, count).

    Raises:
        ValueError: for fewer words than asked for.
    """
    if not 1 <= count <= topics.shape[-1]:
        raise ValueError(
            f"count={count} words a topic, but there are {topics.shape[-1]} words: choose 1 to "
            f"{topics.shape[-1]}."
        )
    # Stable, so that equally likely words come in the order of the vocabulary.
    return topics.argsort(dim=-1, descending=True, stable=True)[:, :count]


def coherence(topics: Tensor, counts: Tensor, count: int = 10) -> Tensor:
    """Mean NPMI of each topic's most likely words in the documents `counts` (N, V): (K,).

    Words that no document has are left out of the mean; NaN where fewer than two are left.

    Raises:
        ValueError: for documents of another vocabulary, or fewer words than asked for.
    """
    if counts.dim() != 2 or counts.shape[1] != topics.shape[-1]:
        raise ValueError(
            f"Topics are over {topics.shape[-1]} words and need documents (N, {topics.shape[-1]}); "
            f"these are {tuple(counts.shape)}. Give the corpus that the topics were found in."
        )
    words = top_words(topics, count)
    has = (counts > 0).double()
    together = has.mT @ has / len(has)  # p(v, w) (V, V)
    alone = together.diagonal()
    npmi = _npmi(together, alone)
    upper = torch.ones(count, count, dtype=torch.bool, device=words.device).triu(1)
    found = []
    for own in words:
        pairs = npmi[own][:, own]
        known = (alone[own] > 0)[:, None] & (alone[own] > 0) & upper
        found.append(pairs[known].mean())
    return torch.stack(found)


def _npmi(together: Tensor, alone: Tensor) -> Tensor:
    log_p = together.log()
    value = (log_p - alone.log()[:, None] - alone.log()) / -log_p
    value = torch.where(together == 0, -1.0, value)
    return torch.where(together == 1, 1.0, value)  # the limit: both in every document


def topic_table(
    topics: Tensor, counts: Tensor, words: Sequence[str] | None = None, count: int = 10
) -> pd.DataFrame:
    """One row a topic: its coherence and its most likely words, the most coherent first."""
    names = [str(v) for v in range(topics.shape[-1])] if words is None else list(words)
    if len(names) != topics.shape[-1]:
        raise ValueError(f"{len(names)} names for {topics.shape[-1]} words.")
    frame = pd.DataFrame(
        {
            "topic": range(len(topics)),
            "coherence": coherence(topics, counts, count).tolist(),
            "words": [" ".join(names[v] for v in own) for own in top_words(topics, count).tolist()],
        }
    )
    return frame.sort_values("coherence", ascending=False, ignore_index=True)
