"""Sorted subsets of rows in bits."""

import numpy as np
import pytest
import torch

from ppl_lvm.data.blocks.selection import GROUP, RowSelection, split


@pytest.mark.parametrize("sizes", [[5], [700, 1, 0, 299], [256, 256], [1000, 3000, 17]])
def test_split_of_blocks_is_a_partition_of_the_requested_size(sizes: list[int]) -> None:
    total = sum(sizes)
    train, held_out = split(np.array(sizes), total // 5, seed=1)
    assert (len(train), len(held_out)) == (total - total // 5, total // 5)
    rows = [part[torch.arange(len(part))] for part in (train, held_out)]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(total))
    for part, numbers in zip((train, held_out), rows, strict=True):
        assert torch.equal(numbers, numbers.sort().values)
        places = np.arange(total + 1)
        assert np.array_equal(part.rank(places), np.searchsorted(numbers.numpy(), places))
        index = torch.tensor([len(part) - 1, 0, 0])
        assert torch.equal(part[index], numbers[index])


def test_split_holds_every_row_out_equally_often() -> None:
    counts = torch.zeros(60)
    for seed in range(600):
        held_out = split(np.array([10, 50]), 15, seed)[1]
        counts[held_out[torch.arange(15)]] += 1
    assert (counts / 600 - 0.25).abs().max() < 5 * np.sqrt(0.25 * 0.75 / 600)


def test_selection_of_no_rows_is_empty() -> None:
    assert len(RowSelection(np.zeros(GROUP // 8, np.uint8))) == 0
