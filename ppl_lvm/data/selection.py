"""Row subsets of bounded size, and the validation split."""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.data import Data, load_data

MAX_INITIALIZATION_ROWS = 100_000


def first_rows(data: Data, count: int) -> tuple[Tensor, ...]:
    """Batch of the first `count` rows, or of all where there are fewer."""
    return data.batch(torch.arange(min(count, len(data))))


def initialization_rows(data: Data) -> tuple[Tensor, ...]:
    """Batch for `initialize`: all rows, or 100,000 of them sampled from torch's generator."""
    if len(data) <= MAX_INITIALIZATION_ROWS:
        return first_rows(data, len(data))
    return data.batch(torch.randperm(len(data))[:MAX_INITIALIZATION_ROWS].sort().values)


def sample_rows(data: Data, count: int, seed: int) -> Data:
    """At most `count` rows, sampled by `seed` and kept in order."""
    if len(data) <= count:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:count].sort().values)


def split_validation(data: Data, validation: Any, seed: int) -> tuple[Data, Data | None]:
    """Training rows and validation rows.

    Args:
        validation: a number of rows, a fraction, other data, or None or 0 for no validation.
    """
    if validation is None or (isinstance(validation, int | float) and validation == 0):
        return data, None
    if isinstance(validation, int | float):
        return data.split(validation, seed, option="validation")
    return data, validation if isinstance(validation, Data) else load_data(validation)
