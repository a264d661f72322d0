"""Topics: most likely words, and coherence by NPMI.

The normalized pointwise mutual information of two words, from the share p of documents that have
them,

    NPMI(v, w) = log[ p(v, w) / (p(v) p(w)) ] / -log p(v, w),    -1 ≤ NPMI ≤ 1,

is 1 if they always occur together, 0 if independent, -1 if never together (the limit). A topic's
coherence is its mean over all pairs of the topic's most likely words.

References:
    Bouma (2009). Normalized (pointwise) mutual information in collocation extraction.
    Lau, Newman, Baldwin (2014). Machine reading tea leaves: automatically evaluating topic
    coherence and topic model quality. https://aclanthology.org/E14-1056
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


def top_words(topics: Tensor, count: int = 10) -> Tensor:
    """Indices of the most likely words of `topics` (K, V), most likely first: (K, count).

    Raises:
        ValueError: `count` is not in 1…V.
    """
    if not 1 <= count <= topics.shape[-1]:
        raise ValueError(
            f"count={count} words a topic, but there are {topics.shape[-1]} words: choose 1 to "
            f"{topics.shape[-1]}."
        )
    # Stable: equally likely words keep the order of the vocabulary.
    return topics.argsort(dim=-1, descending=True, stable=True)[:, :count]


def coherence(topics: Tensor, counts: Tensor, count: int = 10) -> Tensor:
    """Mean NPMI of each topic's most likely words in the documents `counts` (N, V): (K,).

    Words that occur in no document are left out of the mean; NaN where fewer than two are left.

    Raises:
        ValueError: documents of another vocabulary, or `count` is not in 1…V.
    """
    if counts.dim() != 2 or counts.shape[1] != topics.shape[-1]:
        raise ValueError(
            f"Topics are over {topics.shape[-1]} words and need documents (N, {topics.shape[-1]}); "
            f"these are {tuple(counts.shape)}. Pass the corpus that the topics were fitted to."
        )
    words = top_words(topics, count)
    has = (counts > 0).double()
    joint = has.mT @ has / len(has)  # p(v, w) (V, V)
    marginal = joint.diagonal()
    npmi = _npmi(joint, marginal)
    upper = torch.ones(count, count, dtype=torch.bool, device=words.device).triu(1)
    means = []
    for topic in words:
        occurs = marginal[topic] > 0
        means.append(npmi[topic][:, topic][occurs[:, None] & occurs & upper].mean())
    return torch.stack(means)


def _npmi(joint: Tensor, marginal: Tensor) -> Tensor:
    log_p = joint.log()
    value = (log_p - marginal.log()[:, None] - marginal.log()) / -log_p
    value = torch.where(joint == 0, -1.0, value)
    return torch.where(joint == 1, 1.0, value)  # the limit: both in every document


def topic_table(
    topics: Tensor, counts: Tensor, words: Sequence[str] | None = None, count: int = 10
) -> "pd.DataFrame":
    """One row per topic: its coherence and its most likely words, most coherent topics first."""
    import pandas as pd

    names = [str(v) for v in range(topics.shape[-1])] if words is None else list(words)
    if len(names) != topics.shape[-1]:
        raise ValueError(f"{len(names)} names for {topics.shape[-1]} words.")
    best = top_words(topics, count).tolist()
    frame = pd.DataFrame(
        {
            "topic": range(len(topics)),
            "coherence": coherence(topics, counts, count).tolist(),
            "words": [" ".join(names[v] for v in topic) for topic in best],
        }
    )
    return frame.sort_values("coherence", ascending=False, ignore_index=True)
