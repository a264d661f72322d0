"""What tests of loading share."""

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
    """The one tensor of `data` equals `expected`, whole and row by row."""
    wanted = torch.as_tensor(np.array(expected), dtype=torch.get_default_dtype())
    index = torch.arange(len(wanted)).flip(0)
    (batch,) = data.batch(index)
    assert len(data) == len(wanted)
    assert batch.dtype == torch.get_default_dtype()
    assert torch.equal(batch, wanted.flip(0))


@pytest.fixture
def written() -> Callable[[Path, str], Path]:
    """A file of this text: `written(path, text)` is the path."""
    return _written


@pytest.fixture
def same() -> Callable[[Data, Any], None]:
    return _same
