"""The precision in which programs run.

Tensors of double precision stay so: programs that are fitted to them run in it, and so does the
run, also after it is saved and loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.data import Data


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """A scope in which new floating-point tensors have this type; None changes nothing."""
    before = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


def precision_of(data: Any) -> torch.dtype | None:
    """Double precision if a tensor of the data has it, else None for the default."""
    if isinstance(data, Tensor):
        return torch.float64 if data.dtype is torch.float64 else None
    if isinstance(data, Data):
        return precision_of(data.batch(torch.tensor([0])))
    parts = getattr(data, "dataset", data)  # of a DataLoader
    parts = getattr(parts, "tensors", parts)  # of a TensorDataset
    if isinstance(parts, dict):
        parts = tuple(parts.values())
    if isinstance(parts, tuple | list) and any(precision_of(part) is not None for part in parts):
        return torch.float64
    return None


def in_double(*programs: Any) -> tuple[Any, ...]:
    """The programs, their modules in double precision if that is the default."""
    if torch.get_default_dtype() is torch.float64:
        for program in programs:
            if isinstance(program, nn.Module):
                program.double()
    return programs
