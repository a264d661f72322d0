"""Topic coherence against a worked example, and its limits."""

import math

import pytest
import torch

from ppl_lvm.posterior.topics import coherence, top_words, topic_table

# Documents have the words a b, a b, a c, d: p(a) = 3/4, p(b) = 1/2, p(c) = p(d) = 1/4.
COUNTS = torch.tensor(
    [[5.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)


def test_coherence_equals_the_worked_example() -> None:
    # a, b: p = 1/2, log[(1/2) / (3/8)] / log 2; a, c: p = 1/4, log[(1/4) / (3/16)] / log 4;
    # b, c: never together, -1.
    ab, ac, bc = math.log(4 / 3) / math.log(2), math.log(4 / 3) / math.log(4), -1.0
    topics = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.4, 0.1, 0.45, 0.05]])
    assert coherence(topics, COUNTS, 3).tolist() == pytest.approx([(ab + ac + bc) / 3] * 2)
    assert coherence(topics, COUNTS, 2).tolist() == pytest.approx([ab, ac])


def test_coherence_of_words_that_always_or_never_co_occur() -> None:
    counts = torch.tensor([[1.0, 1.0, 0.0, 1.0], [2.0, 3.0, 0.0, 0.0]])
    topics = torch.tensor([[0.5, 0.4, 0.1, 0.0]])
    assert coherence(topics, counts, 2).item() == 1.0  # together in every document
    assert coherence(topics, counts, 3).item() == 1.0  # the third is in no document: left out
    assert coherence(torch.tensor([[0.1, 0.0, 0.9, 0.0]]), counts, 2).isnan().all()


def test_independent_words_have_zero_coherence() -> None:
    counts = torch.cartesian_prod(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert coherence(torch.tensor([[0.6, 0.4]]), counts, 2).item() == pytest.approx(0.0, abs=1e-12)


def test_topic_table_has_the_most_coherent_topic_first() -> None:
    topics = torch.tensor([[0.0, 0.3, 0.2, 0.5], [0.5, 0.3, 0.2, 0.0]])
    table = topic_table(topics, COUNTS, list("abcd"), 2)
    assert table["words"].tolist() == ["a b", "d b"]
    assert table["topic"].tolist() == [1, 0]
    assert table["coherence"][1] == -1.0


def test_equally_likely_words_keep_the_order_of_the_vocabulary() -> None:
    assert top_words(torch.ones(1, 4), 3).tolist() == [[0, 1, 2]]


def test_topics_reject_wrong_counts_and_vocabularies() -> None:
    with pytest.raises(
        ValueError, match="count=5 words a topic, but there are 4 words: choose 1 to 4"
    ):
        top_words(torch.ones(1, 4), 5)
    with pytest.raises(ValueError, match=r"over 4 words.*these are \(4, 3\)"):
        coherence(torch.ones(1, 4), COUNTS[:, :3], 2)
    with pytest.raises(ValueError, match="2 names for 4 words"):
        topic_table(torch.ones(1, 4), COUNTS, ["a", "b"], 2)
