"""Files as numbered blocks of rows.

| format | block |
|---|---|
| Parquet | a row group |
| Arrow IPC | a record batch |
| .npy | a range of rows of about 1 MB |
| CSV | the file |

A block is what a thread reads at once. No block may exceed `MOST_BYTES`.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ppl_lvm.core.errors import DataFileError
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.types import Array
from ppl_lvm.data.csv_reader import read_csv
from ppl_lvm.data.validation import SourceLocation, check_shape

MOST_BYTES = 2**30  # of a block in memory
NPY_VALUES = 2**18  # in a block of an .npy file
TILE = 4096  # rows of columns that are written side by side


@dataclass(frozen=True)
class Choice:
    """Columns of a table by name, of an array by index; None: all of them, or no labels."""

    columns: tuple[Any, ...] | None = None
    label: Any = None
    header: bool | None = None


@dataclass(frozen=True)
class Layout:
    """Columns, types and row shape of a file.

    Attributes:
        names: columns of a table, else None.
        kinds: "number" column -> "integer", "floating", "bool", or its type in words.
        shape: of a row.
    """

    names: tuple[str, ...] | None
    kinds: tuple[str, ...]
    shape: tuple[int, ...]


class BlockFile(ABC):
    """A file whose blocks are read by number.

    Raises:
        ValueError: the file is empty, damaged, or of another format; names it.
    """

    unit: ClassVar[str] = ""  # name of a block in messages
    reads_rows: ClassVar[bool] = False  # a few rows cost less than their block
    description: ClassVar[str]
    num_blocks: int
    layout: Layout

    def __init__(self, path: Path) -> None:
        self.path = path
        state = os.stat(path)
        self.size, self._modified = state.st_size, state.st_mtime_ns
        if self.size == 0:
            raise ValueError(f"{path} is empty (0 bytes). Write it again, or remove it.")

    @property
    def state(self) -> str:
        """Name, size and modification time."""
        return f"{self.path.name} {self.size} {self._modified}"

    def name(self, block: int) -> str:
        """Name of a block in messages."""
        return f"{self.path}, {self.unit} {block}" if self.unit else str(self.path)

    def read(self, block: int, choice: Choice) -> tuple[Array, Array | None]:
        """Values (n, ...) and labels (n,) of a block.

        Raises:
            ValueError: the file has changed, or its block cannot be read.
        """
        with self._reading(block):
            return self._read(block, choice)

    def read_rows(self, block: int, rows: Array, choice: Choice) -> Array:
        """Values of some rows (n,) of a block."""
        with self._reading(block):
            return self._read(block, choice)[0][rows]

    @contextmanager
    def _reading(self, block: int) -> Iterator[None]:
        try:
            state = os.stat(self.path)
            if (state.st_size, state.st_mtime_ns) != (self.size, self._modified):
                raise DataFileError(
                    f"{self.path} has changed since it was opened. Load the data again; a fit "
                    "needs files that no program writes to."
                )
            yield
        except FileNotFoundError:
            raise DataFileError(
                f"{self.path} was removed since it was opened. Put it back, or load the data again."
            ) from None
        except (ValueError, OSError, MemoryError) as error:
            if isinstance(error, ValueError) and str(self.path) in str(error):
                raise
            raise DataFileError(self._fault(error, block)) from error

    def _fault(self, error: BaseException, block: int | None = None) -> str:
        where = str(self.path) if block is None else self.name(block)
        reason = reason_of(error).rstrip(".")
        return f"{where} cannot be read as {self.description} ({reason}). Write or copy it again."

    @abstractmethod
    def _read(self, block: int, choice: Choice) -> tuple[Array, Array | None]: ...


def _kind(data_type: Any) -> str:
    """Kind of a column of numbers, or the name of another type."""
    from pyarrow import types

    if types.is_dictionary(data_type):
        return _kind(data_type.value_type)
    if types.is_boolean(data_type):
        return "bool"
    if types.is_integer(data_type):
        return "integer"
    return "floating" if types.is_floating(data_type) or types.is_decimal(data_type) else ""


class _Table(BlockFile):
    """A file of columns with Arrow types."""

    def _set_layout(self, schema: Any) -> None:
        index = (schema.pandas_metadata or {}).get("index_columns", ())
        index = [name for name in index if isinstance(name, str)]  # a range is no column
        fields = [field for field in schema if field.name not in index]
        names = tuple(field.name for field in fields)
        kinds = tuple(_kind(field.type) or str(field.type) for field in fields)
        self.layout = Layout(names, kinds, (len(names),))

    @abstractmethod
    def _columns(self, block: int, names: Sequence[str]) -> Any:
        """A table or batch of some columns."""

    def _read(self, block: int, choice: Choice) -> tuple[Array, Array | None]:
        names = choice.columns or ()
        table = self._columns(block, [*names, *([] if choice.label is None else [choice.label])])
        dtype = np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))
        columns = [_numbers(table.column(name)) for name in names]
        values = np.empty((table.num_rows, len(names)), np.result_type(dtype, *columns))
        for start in range(0, len(values), TILE):
            rows = slice(start, start + TILE)
            for position, column in enumerate(columns):
                values[rows, position] = column[rows]
        label = None if choice.label is None else table.column(choice.label)
        return values, None if label is None else np.asarray(label.to_pandas())


def _numbers(column: Any) -> Array:
    """Numbers (n,) of an Arrow column, NaN where a value is missing."""
    from pyarrow import float32, float64, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    narrow = types.is_float16(column.type) or types.is_boolean(column.type)
    if narrow or (types.is_integer(column.type) and column.type.bit_width <= 16):
        column = column.cast(float32())
    elif not types.is_floating(column.type):
        column = column.cast(float64(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False))


class ParquetBlocks(_Table):
    unit, description = "row group", "Parquet"

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        super().__init__(path)
        try:
            self._metadata = parquet.read_metadata(path)
            self._set_layout(self._metadata.schema.to_arrow_schema())
        except Exception as error:  # of pyarrow, for any damage
            raise ValueError(self._fault(error)) from error
        self.num_blocks = self._metadata.num_row_groups
        for k in range(self.num_blocks):
            group = self._metadata.row_group(k)
            require_small(
                self.name(k), max(group.total_byte_size, 4 * group.num_rows * group.num_columns)
            )

    def _columns(self, block: int, names: Sequence[str]) -> Any:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path, metadata=self._metadata) as file:
            return file.read_row_group(block, columns=list(names))


class ArrowBlocks(_Table):
    unit, description = "record batch", "an Arrow IPC file"

    def __init__(self, path: Path) -> None:
        from pyarrow import OSFile, ipc

        super().__init__(path)
        try:
            with OSFile(str(path)) as source:
                reader = ipc.open_file(source)
                self._set_layout(reader.schema)
                self._positions = {name: k for k, name in enumerate(reader.schema.names)}
                self.num_blocks = reader.num_record_batches
        except Exception as error:
            raise ValueError(self._fault(error)) from error

    def _columns(self, block: int, names: Sequence[str]) -> Any:
        from pyarrow import OSFile, ipc

        options = ipc.IpcReadOptions(included_fields=[self._positions[name] for name in names])
        with OSFile(str(self.path)) as source:
            return ipc.open_file(source, options=options).get_batch(block)


class NpyBlocks(BlockFile):
    """An .npy file of one array (N, ...), read without mapping, so that no pages stay resident."""

    unit, description, reads_rows = "", "an .npy file", True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        array, self._start = open_npy(path)
        check_shape(array, SourceLocation(str(path)))
        self._columns_first = None if array.flags.c_contiguous else array
        self.dtype, self.rows = array.dtype, len(array)
        self.layout = Layout(None, (_numpy_kind(array.dtype),), array.shape[1:])
        self._width = math.prod(array.shape[1:])
        self.block_rows = max(1, NPY_VALUES // self._width)
        self.num_blocks = -(-self.rows // self.block_rows)

    @property
    def sizes(self) -> Array:
        """Rows of each block."""
        sizes = np.full(self.num_blocks, self.block_rows)
        sizes[-1] = self.rows - self.block_rows * (self.num_blocks - 1)
        return sizes

    def _read(self, block: int, choice: Choice) -> tuple[Array, Array | None]:
        first = block * self.block_rows
        values = self._range(first, min(self.block_rows, self.rows - first))
        label = None if choice.label is None else values[:, choice.label]
        return values if choice.columns is None else values[:, list(choice.columns)], label

    def read_rows(self, block: int, rows: Array, choice: Choice) -> Array:
        with self._reading(block):
            first = block * self.block_rows
            values = np.concatenate([self._range(first + int(row), 1) for row in rows])
        return values if choice.columns is None else values[:, list(choice.columns)]

    def _range(self, first: int, count: int) -> Array:
        if self._columns_first is not None:
            return np.array(self._columns_first[first : first + count])
        row = self._width * self.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), count * row, self._start + first * row)
        return np.frombuffer(content, self.dtype).reshape(count, *self.layout.shape)


def _numpy_kind(dtype: Any) -> str:
    return {"b": "bool", "i": "integer", "u": "integer", "f": "floating"}.get(
        dtype.kind, str(dtype)
    )


def open_npy(path: Path) -> tuple[Array, int]:
    """The array of an .npy file, memory-mapped, and its position in the file.

    Raises:
        ValueError: the file is damaged, or holds no array of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises errors of the tokenizer and others
        raise ValueError(numpy_fault(str(path), error)) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz archive by content. Rename it to .npz.")
    start = _header_bytes(path)
    if start + array.nbytes != path.stat().st_size:
        raise ValueError(
            f"{path} has more bytes than its header's shape {array.shape} needs. Write or copy it "
            "again."
        )
    return array, start


def _header_bytes(path: Path) -> int:
    """Bytes of an .npy file before its values."""
    with path.open("rb") as file:
        prefix = file.read(12)
    width = 2 if prefix[6] == 1 else 4  # of the header's length, by the version of the format
    return 8 + width + int.from_bytes(prefix[8 : 8 + width], "little")


def numpy_fault(where: str, error: Exception) -> str:
    """Sentence about a file that NumPy cannot read."""
    if "Python objects" in str(error) or "Object arrays" in str(error):
        return (
            f"{where} holds Python objects. Only unpickling could load them, which may run code. "
            "Save it again as numbers: np.save(path, array.astype(float))."
        )
    fault = "the content is not an array" if "pickle" in str(error) else error
    return f"{where} is not a complete NumPy file ({fault}). Write or copy it again."


class CsvBlocks(BlockFile):
    """A text table, read as a whole; `load_data` describes the format."""

    description, num_blocks = "text", 1
    layout = Layout(None, (), ())  # is known when the file is read

    def _read(self, block: int, choice: Choice) -> tuple[Array, Array | None]:
        columns = None if choice.columns is None else list(choice.columns)
        result = read_csv(self.path, columns, choice.label, "keep", choice.header)
        values = result.store.all_rows()[0].numpy()
        self.layout = Layout(
            None if result.columns is None else tuple(result.columns), (), values.shape[1:]
        )
        return values, result.labels


def require_small(where: str, size: int) -> None:
    """Refuse a block that would not leave memory flat."""
    if size > MOST_BYTES:
        raise ValueError(
            f"{where} takes {size:,} bytes in memory, and at most {MOST_BYTES:,} are read at once. "
            "Write the table with smaller row groups: "
            "pyarrow.parquet.write_table(table, path, row_group_size=100_000)."
        )


# Extension -> class of its files.
FORMATS: dict[str, type[BlockFile]] = {
    ".parquet": ParquetBlocks,
    ".arrow": ArrowBlocks,
    ".feather": ArrowBlocks,
    ".ipc": ArrowBlocks,
    ".npy": NpyBlocks,
    ".csv": CsvBlocks,
    ".tsv": CsvBlocks,
    ".txt": CsvBlocks,
}
