"""Orders in which rows of files are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_lvm.core.types import Array
from ppl_lvm.data import Data, in_order, load_data
from ppl_lvm.training.batching import EpochSampler

Write = Callable[[str], Path]


def epoch(data: Data, batch_size: int, number: int = 0, seed: int = 0) -> torch.Tensor:
    sampler = EpochSampler(len(data), batch_size, seed, data.blocks)
    first = number * sampler.steps_per_epoch
    steps = [sampler.rows(step) for step in range(first, first + sampler.steps_per_epoch)]
    return torch.cat([rows for rows in steps if rows is not None])


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
@pytest.mark.parametrize("batch_size", [1, 64, 400, 999])
def test_epoch_on_disk_reads_every_row_once(
    write: Write, table: Array, suffix: str, batch_size: int, on_disk: None
) -> None:
    data = load_data(write(suffix), shuffle_buffer=150)
    sampler = EpochSampler(len(data), batch_size, 0, data.blocks)
    for rows in map(sampler.rows, range(min(40, 2 * sampler.steps_per_epoch))):
        assert rows is not None  # a batch may lie in several buffers
        assert torch.equal(data.batch(rows)[0], torch.from_numpy(table)[rows])
    orders = [epoch(data, batch_size), epoch(data, batch_size, 1), epoch(data, batch_size, seed=1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
        assert torch.equal(data.batch(order)[0], torch.from_numpy(table)[order])
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    # Rows are shuffled within a buffer, and buffers are of blocks that are not neighbors.
    assert (orders[0][:150].diff() == 1).float().mean() < 0.1
    assert orders[0][:300].unique().diff().max() > 1


def test_rows_of_a_step_do_not_depend_on_the_steps_before(write: Write, on_disk: None) -> None:
    data = load_data(write("parquet"), shuffle_buffer=150)
    sampler = EpochSampler(len(data), 64, 0, data.blocks)
    expected = [sampler.rows(step) for step in range(40)]
    for step in (37, 3, 16, 15):
        for each in (sampler, EpochSampler(len(data), 64, 0, data.blocks)):
            rows, known = each.rows(step), expected[step]
            assert rows is not None
            assert known is not None
            assert torch.equal(rows, known)


def test_subsets_on_disk_are_shuffled_and_read_in_order(
    write: Write, table: Array, on_disk: None
) -> None:
    data = load_data(write("parquet"), shuffle_buffer=150)
    train, held_out = data.split(0.2, seed=0)
    for part in (train, held_out, data.subset(torch.arange(0, 1000, 2))):
        assert part.blocks is not None
        assert part.blocks.sizes.sum() == len(part)
        rows = torch.cat([part.batch(index)[0] for index in in_order(part, 77)])
        assert torch.equal(rows, part.tensors[0])
        number = int(rows[7, 0])
        assert part.locate(7) == data.locate(number)
        assert torch.equal(rows, torch.from_numpy(table)[rows[:, 0].long()])
        assert torch.equal(epoch(part, 64).sort().values, torch.arange(len(part)))
    both = torch.cat([train.tensors[0], held_out.tensors[0]])[:, 0]
    assert torch.equal(both.sort().values, torch.arange(1000.0))
    assert data.subset(torch.arange(1000).flip(0)).blocks is None  # in no order of the files


def test_rows_in_memory_keep_the_order_of_one_permutation(write: Write) -> None:
    data = load_data(write("parquet"))
    assert data.blocks is None
    words = np.random.SeedSequence([3, 1]).generate_state(2)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    assert torch.equal(epoch(data, 64, 1, seed=3), torch.randperm(1000, generator=generator))
