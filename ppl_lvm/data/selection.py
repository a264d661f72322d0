"""Some rows of a data set, where all would cost more as N grows."""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.data import Data, load_data

SOME = 100_000


def first_rows(data: Data, count: int) -> tuple[Tensor, ...]:
    """The first `count` rows, or all where there are fewer: a batch of tensors, rows first."""
    return data.batch(torch.arange(min(count, len(data))))


def initialization_rows(data: Data) -> tuple[Tensor, ...]:
    """All rows, or 100,000 of them drawn under torch's seed: what `initialize` is shown."""
    if len(data) <= SOME:
        return first_rows(data, len(data))
    return data.batch(torch.randperm(len(data))[:SOME].sort().values)


def sample_rows(data: Data, count: int, seed: int) -> Data:
    """The data, or `count` of its rows, drawn at random by `seed` and kept in their order."""
    if len(data) <= count:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:count].sort().values)


def split_validation(data: Data, validation: Any, seed: int) -> tuple[Data, Data | None]:
    """The rows to fit to, and those to judge by: some, a share, data of their own, or none."""
    if validation is None or (isinstance(validation, int | float) and validation == 0):
        return data, None
    if isinstance(validation, int | float):
        return data.split(validation, seed)
    return data, validation if isinstance(validation, Data) else load_data(validation)
