"""Sequences with missing values, steps and ends."""

import torch
from torch import Tensor


def incomplete_sequences(
    rows: int, columns: int, *, missing_step: int, categories: int | None = None
) -> Tensor:
    """Sequences (rows, 5, columns), the same at every call.

    Row 0 is full, row 1 has three steps, row 2 a missing value, row 3 a missing step, and rows
    from 4 on are empty.
    """
    torch.manual_seed(1)
    x = torch.randn(rows, 5, columns)
    if categories is not None:
        x = torch.randint(categories, x.shape).to(x)
    x[1, 3:] = torch.nan
    x[2, 1, 0] = torch.nan
    x[3, missing_step] = torch.nan
    x[4:] = torch.nan
    return x
