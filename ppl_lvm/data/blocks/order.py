"""Orders in which rows of files are read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.types import Array
from ppl_lvm.data.blocks.selection import RowSelection
from ppl_lvm.data.blocks.store import Blocked

if TYPE_CHECKING:
    from ppl_lvm.data.load import Data


@dataclass(frozen=True)
class ShuffleBlocks:
    """Consecutive blocks of rows that are read together.

    Attributes:
        sizes: rows of each block.
        buffer: rows that are shuffled together.
        read_ahead: reads blocks of these numbers in a thread.
    """

    sizes: Array
    buffer: int
    read_ahead: Callable[[Sequence[int]], None]


def is_few(store: Blocked, rows: Tensor | RowSelection | None, most_bytes: int) -> bool:
    """True for a subset of rows that fits in memory."""
    return rows is not None and len(rows) * store.row_bytes <= most_bytes


def row_blocks(store: Blocked, rows: Tensor | RowSelection | None) -> ShuffleBlocks | None:
    """The blocks of a subset of rows, some of them empty; None if the rows are not in order."""
    places: Array = store.offsets
    if isinstance(rows, RowSelection):
        places = rows.rank(places)
    elif rows is not None:
        if not bool((rows.diff() >= 0).all()):
            return None
        places = np.searchsorted(rows.numpy(), places)
    return ShuffleBlocks(np.diff(places), store.buffer, store.read_ahead)


def in_order(data: "Data", size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
    """Numbers of the rows start, …, stop - 1 in consecutive batches of `size`.

    The blocks of files that follow a batch are read ahead.
    """
    stop = len(data) if stop is None else stop
    blocks = data.blocks
    ends = None if blocks is None else np.cumsum(blocks.sizes)
    for first in range(start, stop, size):
        last = min(first + size, stop)
        if blocks is not None and ends is not None:
            following = np.searchsorted(ends, [last - 1, last - 1 + size], side="right")
            blocks.read_ahead(range(following[0] + 1, min(following[1] + 1, len(ends))))
        yield torch.arange(first, last)
