"""Parameters per row in a table of N rows.

A guide that keeps parameters of every row (λ_n) must know the row numbers of a batch. It asks for
them, and the code that drives the steps provides them:

    with ProvideBatchRows(rows, num_rows=N):      # the driver: these B of N rows
        svi.step(x[rows])

    provided = batch_rows()                    # the guide: (rows (B,), N), or None
    values = self.row_table.read(provided[0])  # (B, width)
    self.row_table.write(provided[0], values)

A `RowTable` accesses the requested rows only, so that a step costs the same for every N. It is a
temporary file that the operating system maps into memory page by page. Rows that were never written
are zero, and use no space on a file system with sparse files.

In a run with checkpoints there is a second file next to them. A checkpoint holds the rows that have
changed since the one before; after it is written, they are written to that file too. If the process
is killed at any moment, checkpoint and file together restore the table of the checkpoint, whose
SHA-256 is in the checkpoint.
"""

import copy
import hashlib
import os
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from ppl_lvm.core.storage import damaged, strip_prefix
from ppl_lvm.core.validate import Count

BLOCK = 2**16  # bytes of a table that are hashed together

BatchRows = tuple[Tensor, int]


@effectful(type="batch_rows")
def batch_rows() -> BatchRows | None:
    """Row numbers (B,) of the batch in the data, and N; None if they are not provided."""
    return None


class ProvideBatchRows(Messenger):
    """Answers `batch_rows()`: the batch has these rows of `num_rows`."""

    def __init__(self, rows: Tensor, num_rows: int) -> None:
        super().__init__()
        self.rows, self.num_rows = rows, num_rows

    def _pyro_batch_rows(self, msg: Any) -> None:
        msg["value"] = (self.rows, self.num_rows)
        msg["done"] = True


class RowTable:
    """N rows of `width` values, initially zero.

    Attributes:
        width: values per row.
        size: N; None until `resize`.
        rows_accessed: number of rows read or written so far, the cost of the steps.
    """

    def __init__(self, width: Count, dtype: torch.dtype = torch.float32) -> None:
        self.width, self._dtype = width, torch.empty(0, dtype=dtype).numpy().dtype
        self.size: int | None = None
        self.rows_accessed = 0
        self._array: Any = None
        self._changed: Any = None  # since the last checkpoint
        self._in_file = False  # whether the file of the checkpoints is this table's
        self._digests: dict[int, bytes] = {}  # of the blocks that are not zero

    def resize(self, size: int) -> None:
        """Set N; all rows are zero."""
        self.size = size
        self._array = _mapped(self._dtype, (size, self.width))
        self._changed = _mapped(np.dtype(bool), (size,))
        self._in_file = False
        self._digests = {}

    def read(self, rows: Tensor) -> Tensor:
        """Copies of rows (B,): (B, width)."""
        self.rows_accessed += len(rows)
        return torch.from_numpy(self._array[rows.cpu().numpy()])

    def write(self, rows: Tensor, values: Tensor) -> None:
        """Set rows (B,) to `values` (B, width)."""
        self.rows_accessed += len(rows)
        index = rows.cpu().numpy()
        self._array[index] = values.detach().cpu().numpy()
        self._changed[index] = True

    def changes(self) -> dict[str, Tensor]:
        """For a checkpoint: the rows that have changed since the last one, N, and the checksum."""
        rows = np.flatnonzero(self._changed) if self.size else np.zeros(0, dtype=np.int64)
        values = self._array[rows] if self.size else np.zeros((0, self.width), self._dtype)
        return {
            "size": torch.tensor(self.size or 0),
            "rows": torch.from_numpy(rows),
            "values": torch.from_numpy(values),
            "checksum": self._checksum(np.unique(rows // self._block).tolist()),
        }

    def commit(self, path: Path, changes: dict[str, Tensor]) -> None:
        """Write the changes of a checkpoint, which is on disk already, to the file at `path`."""
        if self.size is None:
            return
        if not self._in_file:
            path.unlink(missing_ok=True)
        self._apply(path, changes)
        self._in_file = True
        self._changed[changes["rows"].numpy()] = False

    def restore(self, path: Path, changes: dict[str, Tensor]) -> None:
        """Restore the table of the checkpoint with these `changes`.

        Raises:
            DamagedFileError: the file at `path` is not that of the checkpoint.
        """
        size = int(changes["size"])
        if size == 0:
            return
        self.resize(size)
        length = path.stat().st_size if path.is_file() else 0
        if length:
            table = self._array.view(np.uint8).reshape(-1)
            shared = min(length, len(table))
            table[:shared] = np.memmap(path, np.uint8, "r")[:shared]
        self._array[changes["rows"].numpy()] = changes["values"].numpy()
        checksum = self._checksum(range(-(-size // self._block)))
        if not torch.equal(checksum, changes.get("checksum", checksum)):  # ppl_lvm 0.1 has none
            reason = "its rows do not have the checksum in the checkpoint"
            raise damaged(path, reason if length else "it is missing, or empty")
        self._apply(path, changes)
        self._in_file = True

    @property
    def _block(self) -> int:
        """Number of rows that are hashed together."""
        return max(1, BLOCK // (self.width * self._dtype.itemsize))

    def _checksum(self, changed: Iterable[int]) -> Tensor:
        """SHA-256 (32,) of the table, of which these blocks may have changed since the last one.

        Blocks are hashed separately, so that the cost is that of the changed rows.
        """
        for block in changed:
            content = self._array[block * self._block : (block + 1) * self._block].view(np.uint8)
            self._digests.pop(block, None)
            if content.any():
                self._digests[block] = hashlib.sha256(content).digest()
        whole = hashlib.sha256(f"{self.size} {self.width} {self._dtype}".encode())
        for block, digest in sorted(self._digests.items()):
            whole.update(block.to_bytes(8, "little") + digest)
        return torch.tensor(list(whole.digest()), dtype=torch.uint8)

    def _apply(self, path: Path, changes: dict[str, Tensor]) -> None:
        assert self.size is not None
        with path.open("ab") as file:
            file.truncate(self.size * self.width * self._dtype.itemsize)
        stored = np.memmap(path, self._dtype, "r+", shape=(self.size, self.width))
        stored[changes["rows"].numpy()] = changes["values"].numpy()
        stored.flush()
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowTable":
        new = copy.copy(self)
        if self.size is not None:
            new.resize(self.size)
            np.copyto(new._array, self._array)
            np.copyto(new._changed, self._changed)
            new._digests = dict(self._digests)
        return new


@runtime_checkable
class HasRowTable(Protocol):
    """A module with a table of rows, which the training loop saves with its checkpoints."""

    row_table: RowTable


def _mapped(dtype: Any, shape: tuple[int, ...]) -> Any:
    """Zeros in a temporary file that is deleted with the process."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


class RowTables:
    """The row tables of a guide, for the training loop.

    Args:
        guide: a program; its modules that are `HasRowTable` have a table each.
        num_rows: N.
    """

    def __init__(self, guide: Any, num_rows: int) -> None:
        modules = guide.named_modules() if isinstance(guide, nn.Module) else ()
        self.tables = {n: m.row_table for n, m in modules if isinstance(m, HasRowTable)}
        self._num_rows = num_rows

    def __bool__(self) -> bool:
        return bool(self.tables)

    def shown(self, rows: Tensor | None) -> AbstractContextManager[Any]:
        """A scope in which the batch has these rows; None: all rows."""
        if not self.tables:
            return nullcontext()
        batch = torch.arange(self._num_rows) if rows is None else rows
        return ProvideBatchRows(batch, self._num_rows)

    def changes(self) -> dict[str, Tensor]:
        """Changes of every table, by name, for a checkpoint."""
        return {
            f"{table}/{name}": tensor
            for table, rows in self.tables.items()
            for name, tensor in rows.changes().items()
        }

    def commit(self, checkpoint: Path, changes: dict[str, Tensor]) -> None:
        """Write the changes to the files next to `checkpoint`."""
        for name, table in self.tables.items():
            table.commit(_beside(checkpoint, name), strip_prefix(f"{name}/", changes))

    def restore(self, checkpoint: Path, changes: dict[str, Tensor]) -> None:
        """Restore the tables of `checkpoint`."""
        for name, table in self.tables.items():
            table.restore(_beside(checkpoint, name), strip_prefix(f"{name}/", changes))


def _beside(checkpoint: Path, name: str) -> Path:
    return checkpoint.with_suffix(f".{name}.rows" if name else ".rows")
