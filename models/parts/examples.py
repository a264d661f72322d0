"""Small batches to try the models on."""

import torch
from torch import Tensor

NUM_ROWS = 24


def example_rows(seed: int = 0, columns: int = 10) -> tuple[Tensor, ...]:
    """Standard normal rows (24, P)."""
    return (torch.randn(NUM_ROWS, columns, generator=torch.Generator().manual_seed(seed)),)


def example_bits(seed: int = 0, columns: int = 10) -> tuple[Tensor, ...]:
    """Rows (24, P) of zeros and ones."""
    (x,) = example_rows(seed, columns)
    return ((x > 0.3).to(x.dtype),)


def example_counts(seed: int = 0, columns: int = 6) -> tuple[Tensor, ...]:
    """Rows (24, P) of counts, none of them empty."""
    (x,) = example_rows(seed, columns)
    x = (2 * x.abs()).round()
    x[:, 0] += 1
    return (x,)


def example_sequences(seed: int = 0) -> tuple[Tensor, ...]:
    """Sequences (24, 3, 3)."""
    (x,) = example_rows(seed, 9)
    return (x.reshape(NUM_ROWS, 3, 3),)
