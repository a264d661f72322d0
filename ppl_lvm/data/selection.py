"""Row subsets of bounded size, and the validation split."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.data import Data, load_data
from ppl_lvm.data.blocks.selection import RowSelection

MAX_INITIALIZATION_ROWS = 100_000
FEWEST_SAMPLED = 10_000  # rows of the sample in memory, below which rows are read from disk


def first_rows(data: Data, count: int) -> tuple[Tensor, ...]:
    """Batch of the first `count` rows, or of all where there are fewer."""
    return data.batch(torch.arange(min(count, len(data))))


def initialization_rows(data: Data) -> tuple[Tensor, ...]:
    """Batch for `initialize`: all rows, or 100,000 of them sampled from torch's generator."""
    if len(data) <= MAX_INITIALIZATION_ROWS:
        return first_rows(data, len(data))
    return data.batch(sample_index(data, MAX_INITIALIZATION_ROWS))


def sample_index(data: Data, count: int, generator: torch.Generator | None = None) -> Tensor:
    """At most `count` row numbers in ascending order, sampled from torch's generator or this one.

    Of rows on disk they are among those that were sampled uniformly when the files were opened, so
    that no file is read again.
    """
    N = len(data)
    if count >= N:
        return torch.arange(N)
    if data.blocks is None:
        return torch.randperm(N, generator=generator)[:count].sort().values
    rows = _sampled_rows(data)
    if len(rows) < min(count, FEWEST_SAMPLED):
        words = torch.randint(2**31, (2,), generator=generator).tolist()
        chosen = np.random.default_rng(words).choice(N, count, replace=False, shuffle=False)
        return torch.from_numpy(np.sort(chosen))
    return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values


def _sampled_rows(data: Data) -> Tensor:
    """Numbers of those rows of files that were sampled when they were opened."""
    store: Any = data.store
    if store.sampled is None:
        return torch.empty(0, dtype=torch.int64)
    numbers = store.sampled[0]
    if isinstance(data.rows, RowSelection):
        places = data.rows.rank(numbers)
        return torch.from_numpy(places[data.rows.rank(numbers + 1) > places])
    if data.rows is not None:
        return torch.from_numpy(np.flatnonzero(np.isin(data.rows.numpy(), numbers)))
    return torch.from_numpy(numbers)


def sample_rows(data: Data, count: int, seed: int) -> Data:
    """At most `count` rows, sampled by `seed` and kept in order."""
    if len(data) <= count:
        return data
    return data.subset(sample_index(data, count, torch.Generator().manual_seed(seed)))


def split_validation(data: Data, validation: Any, seed: int) -> tuple[Data, Data | None]:
    """Training rows and validation rows.

    Args:
        validation: a number of rows, a fraction, other data, or None or 0 for no validation.
    """
    if validation is None or (isinstance(validation, int | float) and validation == 0):
        return data, None
    if isinstance(validation, int | float):
        return data.split(validation, seed, option="validation")
    if isinstance(validation, Data):
        return data, validation
    try:
        return data, load_data(validation)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from None
