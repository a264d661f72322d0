"""Fixtures of the loading tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppl_lvm.data import Data


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _same(data: Data, expected: Any) -> None:
    """The one tensor of `data` equals `expected`, in full and row by row."""
    rows = torch.as_tensor(np.array(expected), dtype=torch.get_default_dtype())
    index = torch.arange(len(rows)).flip(0)
    (batch,) = data.batch(index)
    assert len(data) == len(rows)
    assert batch.dtype == torch.get_default_dtype()
    assert torch.equal(batch, rows.flip(0))


@pytest.fixture
def written() -> Callable[[Path, str], Path]:
    """Write a text file: `written(path, text)` returns the path."""
    return _written


@pytest.fixture
def same() -> Callable[[Data, Any], None]:
    return _same
