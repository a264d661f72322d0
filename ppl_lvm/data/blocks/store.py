"""Rows of files by number, read ahead in a thread."""

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.types import Array
from ppl_lvm.data.blocks.files import BlockFile, Choice
from ppl_lvm.data.validation import SourceLocation, from_array

MOST_REGIONS = 2  # in memory: a batch may begin in one buffer of rows and end in the next
MOST_PENDING = 2  # regions that are read ahead
SPARSE = 8  # at most one row of so many is read alone


@dataclass(frozen=True)
class BlockLocation(SourceLocation):
    """Names of rows by file, block and row of the file.

    Attributes:
        files: those of `blocks`.
        blocks: (file, block in the file, first row of the file) of each block.
        offsets: first row of each block, and their number.
    """

    files: tuple[BlockFile, ...] = ()
    blocks: tuple[tuple[int, int, int], ...] = ()
    offsets: Any = None

    def of_block(self, number: int) -> SourceLocation:
        """Location of one block, whose rows are those of the file."""
        file, block, _ = self.blocks[number]
        return SourceLocation(self.files[file].name(block), self.columns, self.column_indices)

    def name(self, row: int | None = None, column: int | None = None, part: int = 0) -> str:
        if row is None:
            return super().name(row, column, part)
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        in_file = row - int(self.offsets[number]) + self.blocks[number][2]
        return self.of_block(number).name(in_file, column, part)


@dataclass(frozen=True)
class Region:
    """Values (n, ...) of some blocks, in the order of `numbers`.

    Attributes:
        firsts: first row of each block of the store, -1 of those that are not here.
        usable: True if all values are finite.
    """

    numbers: tuple[int, ...]
    firsts: Array
    values: Array
    usable: bool


class BlockStore:
    """Rows of files, of which a few regions are in memory.

    Attributes:
        offsets: (blocks + 1,) first row of each block, then the number of rows.
        buffer: rows that are shuffled together.

    Args:
        location: with files and blocks.
        choice: columns of the files.
        missing: "error" or "keep".
        sample: numbers (n,) in ascending order of rows sampled uniformly, and their values.
    """

    def __init__(
        self,
        location: BlockLocation,
        choice: Choice,
        missing: str,
        buffer: int,
        sample: tuple[Array, Array] | None = None,
    ) -> None:
        self.location, self.choice, self.missing = location, choice, missing
        self.offsets, self.buffer = location.offsets, buffer
        self.sampled = sample
        self.dtype = torch.get_default_dtype()
        self._regions: list[Region] = []  # the latest last
        self._pending: dict[tuple[int, ...], Future[Region]] = {}
        self._reader: tuple[int, ThreadPoolExecutor] | None = None  # of this process
        self._lock = threading.RLock()
        self._shape = self.location.files[0].layout.shape
        if choice.columns is not None:
            self._shape = (len(choice.columns), *self._shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy in another process or object, which reads again."""
        state = self.__dict__ | {"_regions": [], "_pending": {}, "_reader": None}
        return {name: value for name, value in state.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory."""
        return int(np.prod(self._shape)) * self.dtype.itemsize

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        """The rows `index` (B,); reads the blocks that are not in memory.

        Raises:
            ValueError: a file cannot be read, has changed, or has an unusable value.
        """
        rows = self._row_numbers(index)
        with self._lock:
            values, usable = self._take(rows)
            if usable:
                return (torch.from_numpy(values),)
            unusable = np.isinf(values) if self.missing == "keep" else ~np.isfinite(values)
            if unusable.any():
                self._name_unusable(rows[unusable.reshape(len(rows), -1).any(1)][:1])
            return (torch.from_numpy(values),)

    def _name_unusable(self, row: Array) -> None:
        """Raise for a row (1,) with an unusable value, which is read again as it is in the file."""
        number = int(np.searchsorted(self.offsets, row, side="right")[0]) - 1
        number_of_file, block, first = self.location.blocks[number]
        file = self.location.files[number_of_file]
        in_block = row - self.offsets[number]
        read = file.read_rows(block, in_block, self.choice)
        location = self.location.of_block(number)
        from_array(read, location, rows=first + in_block, missing=self.missing)

    def _row_numbers(self, index: Tensor) -> Array:
        rows = index.cpu().numpy()
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if len(rows) and rows.min() < 0:
            rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError("a row is out of range")
        return rows

    def _from_sample(self, rows: Array) -> Array | None:
        """Values of rows that are all in the sample."""
        if self.sampled is None or not len(rows):
            return None
        numbers, values = self.sampled
        place = np.minimum(np.searchsorted(numbers, rows), len(numbers) - 1)
        return values[place] if np.array_equal(numbers[place], rows) else None

    def _take(self, rows: Array) -> tuple[Array, bool]:
        """Values of rows, and True if they are known to be usable."""
        blocks = np.searchsorted(self.offsets, rows, side="right") - 1
        for region in reversed(self._regions):
            first = region.firsts[blocks]
            if (first >= 0).all():
                place = first + rows - self.offsets[blocks]
                return region.values.take(place, axis=0), region.usable
        present = np.unique(blocks)
        left = self._missing(present)
        if left:
            sampled = self._from_sample(rows)
            if sampled is not None:
                return sampled, True
            self._receive(left)
            left = self._missing(present)
        if left and self._is_worth_keeping(left, len(rows)):
            self._keep(self._read_region(tuple(sorted(left))))
            left = self._missing(present)  # this may have replaced a region that is needed too
        values = np.empty((len(rows), *self._shape), self._numpy_dtype)
        for region in self._regions:
            first = region.firsts[blocks]
            here = first >= 0
            values[here] = region.values[(first + rows - self.offsets[blocks])[here]]
        for number in sorted(left):
            here = blocks == number
            values[here] = self._read_rows(number, rows[here] - self.offsets[number])
        return values, False

    def _missing(self, blocks: Array) -> set[int]:
        """Those of the blocks that are in no region."""
        for region in self._regions:
            blocks = blocks[region.firsts[blocks] < 0]
        return set(blocks.tolist())

    @property
    def _numpy_dtype(self) -> Any:
        return np.dtype(str(self.dtype).removeprefix("torch."))

    def _is_worth_keeping(self, blocks: set[int], count: int) -> bool:
        """True if these blocks fit in memory, and enough of their rows are read."""
        size = sum(int(self.offsets[n + 1] - self.offsets[n]) for n in blocks)
        file = self.location.files[self.location.blocks[next(iter(blocks))][0]]
        if file.reads_rows and count * SPARSE < size:
            return False
        return len(blocks) == 1 or size <= self.buffer

    # Reading

    def _read_region(self, numbers: Sequence[int]) -> Region:
        parts = []
        for number in numbers:
            file, block, _ = self.location.blocks[number]
            read = self.location.files[file].read(block, self.choice)[0]
            parts.append(self._convert(read))
        firsts = np.full(len(self.offsets) - 1, -1)
        sizes = [len(part) for part in parts]
        firsts[list(numbers)] = np.cumsum(sizes) - sizes
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Region(tuple(numbers), firsts, values, bool(np.isfinite(values).all()))

    def _read_rows(self, number: int, rows: Array) -> Array:
        file, block, _ = self.location.blocks[number]
        return self._convert(self.location.files[file].read_rows(block, rows, self.choice))

    def _convert(self, values: Array) -> Array:
        with np.errstate(over="ignore"):  # gives infinities, which are rejected in a batch
            return values.astype(self._numpy_dtype, copy=False)

    def read_ahead(self, numbers: Sequence[int]) -> None:
        """Read blocks in a thread; `take` waits for them."""
        key = tuple(int(n) for n in numbers)
        with self._lock:
            if not key or key in self._pending or any(r.numbers == key for r in self._regions):
                return
            if self._reader is None or self._reader[0] != os.getpid():  # a fork has no threads
                self._reader = os.getpid(), ThreadPoolExecutor(1, "read-ahead")
                self._pending = {}
            while len(self._pending) >= MOST_PENDING:
                self._pending.pop(next(iter(self._pending))).cancel()
            self._pending[key] = self._reader[1].submit(self._read_region, key)

    def _receive(self, needed: set[int]) -> None:
        """Keep the regions that were read ahead and are needed now."""
        for key in [key for key in self._pending if needed & set(key)]:
            self._keep(self._pending.pop(key).result())

    def _keep(self, region: Region) -> None:
        self._regions = [*self._regions[1 - MOST_REGIONS :], region]

    def all_rows(self) -> tuple[Tensor, ...]:
        """All rows, in memory."""
        return (torch.cat([self.take(torch.arange(a, b))[0] for a, b in self._spans()]),)

    def _spans(self) -> list[tuple[int, int]]:
        return [(int(a), int(b)) for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def fingerprint(self) -> str:
        """Digest of names, sizes and modification times of the files, and of the columns.

        Any program that writes to a file changes its time. A digest of the rows would cost an
        epoch.
        """
        parts = [file.state for file in self.location.files]
        parts += [str(self.choice), str(self.dtype), self.missing]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class AppendedStore:
    """Rows of a store with one more tensor (N, ...)."""

    def __init__(self, store: Any, tensor: Tensor) -> None:
        self.store, self.tensor, self.location = store, tensor, store.location
        self.offsets, self.buffer, self.sampled = store.offsets, store.buffer, store.sampled
        self.row_bytes, self.read_ahead = store.row_bytes, store.read_ahead

    def __len__(self) -> int:
        return len(self.store)

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        return (*self.store.take(index), self.tensor[index])

    def all_rows(self) -> tuple[Tensor, ...]:
        return (*self.store.all_rows(), self.tensor)

    def fingerprint(self) -> str:
        digest = self.store.fingerprint().encode()
        return hashlib.sha256(digest + self.tensor.numpy().tobytes()).hexdigest()


Blocked = BlockStore | AppendedStore
