"""Readers of data files by their extension.

    read(path, columns=..., labels=..., missing=..., header=...) -> ReaderResult

Formats: .csv, .tsv, .txt, .npy, .npz, .parquet, .arrow, .feather. `READERS` lists them. Nothing is
guessed, filled or skipped, and every fault is an error that names file, row and column. Rows of
more than `MAP_ABOVE` bytes stay on disk, see `ppl_lvm.data.blocks`. Nothing is unpickled.
"""

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppl_lvm.core.messages import did_you_mean
from ppl_lvm.core.types import Array
from ppl_lvm.data.blocks.files import MOST_BYTES, numpy_fault, open_npy
from ppl_lvm.data.blocks.opening import is_pattern, matching_files, read_files
from ppl_lvm.data.csv_reader import read_csv
from ppl_lvm.data.frames import join_frames, read_frame
from ppl_lvm.data.stores import ReaderResult, memory_store
from ppl_lvm.data.validation import Columns, SourceLocation, check_shape, pick_columns

if TYPE_CHECKING:
    import pandas as pd

MAP_ABOVE = 64 * 2**20  # bytes in memory
BUFFER = 2**18  # rows of larger files that are shuffled together
MOST_RATIO = 100  # arrays of a compressed file take so many times its size, or MOST_BYTES


def read(
    path: Path,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
    header: bool | None = None,
    buffer: int = BUFFER,
) -> ReaderResult:
    """Read a file by its extension, or the files of a folder or pattern.

    Args:
        buffer: rows that are shuffled together where they are not in memory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: for an unknown extension and for every fault of the contents.
    """

    def in_blocks(files: list[Path]) -> ReaderResult:
        sizes = {"buffer": buffer, "most_in_memory": MAP_ABOVE}
        return read_files(files, str(path), columns, labels, missing, header, **sizes)

    if path.is_dir() or is_pattern(path):
        files = matching_files(path)
        has_header = (
            files[0].suffix.lower() in READERS and READERS[files[0].suffix.lower()].has_header
        )
        if header is not None and not has_header:
            raise ValueError(f"{path}: header={header} applies to text files only. Omit it.")
        if _has_categories(files[0]):
            return _read_frames(files, str(path), columns, labels, missing)
        return in_blocks(files)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        formats = ", ".join(f"{ext} ({each.description})" for ext, each in READERS.items())
        raise ValueError(
            f"{path}: cannot read files ending in {suffix or 'nothing'!r}. Convert the file to "
            f"one of {formats}, or give an array in Python."
        )
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"There is no file {path}.{_neighbor(path)}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened ({error}). Name another file.") from None
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path} is a pipe or a device. Write its content to a file first.")
    if state.st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Check the program that wrote it.")
    reader = READERS[suffix]
    if header is None and reader.is_large(path):
        return in_blocks([path])
    if header is None:
        return reader.read(path, columns, labels, missing)
    if not reader.has_header:
        with_header = ", ".join(name for name, each in READERS.items() if each.has_header)
        raise ValueError(f"{path}: header={header} applies to {with_header} files only. Omit it.")
    return reader.read(path, columns, labels, missing, header)


def _neighbor(path: Path) -> str:
    """Suggestion of a file for a path that does not exist."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    names = sorted(other.name for other in path.parent.iterdir() if other.suffix in READERS)
    if not names:
        return f" {path.parent.resolve()} holds no data files."
    return did_you_mean(path.name, names) or f" Available: {', '.join(names[:12])}."


def read_npy(
    path: Path, columns: Columns = None, labels: str | int | None = None, missing: str = "error"
) -> ReaderResult:
    """Read one array (N, ...)."""
    array, _ = open_npy(path)
    location = SourceLocation(str(path))
    check_shape(array, location)
    classes = None
    if columns is not None or labels is not None:
        chosen, classes, location = pick_from_array(array, location, columns, labels)
        array = array[:, chosen]
    return ReaderResult(memory_store([np.array(array)], location, missing), None, classes)


def pick_from_array(
    array: Array, location: SourceLocation, columns: Columns, labels: str | int | None
) -> tuple[list[int], Array | None, SourceLocation]:
    """Chosen columns of an array (N, P) by index, labels (N,), and the columns' location."""
    if array.ndim != 2:
        raise ValueError(
            f"{location.source} has shape {array.shape}; columns= and labels= choose columns of a "
            "table (N, P). Index arrays of another shape in Python."
        )
    chosen, label = pick_columns(None, array.shape[1], columns, labels, location.source)
    classes = None if label is None else np.array(array[:, label])
    return chosen, classes, replace(location, column_indices=tuple(chosen))


def read_npz(
    path: Path, columns: Columns = None, labels: str | int | None = None, missing: str = "error"
) -> ReaderResult:
    """Read several arrays with the same rows; `columns` names the model's arrays, in order."""
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:
            raise ValueError(numpy_fault(str(path), error)) from error
        if isinstance(archive, np.ndarray):
            raise ValueError(f"{path} is an .npy file by content. Rename it to .npy.")
        names = list(archive.files)
        if not names:
            raise ValueError(f"{path} holds no arrays. Check the program that wrote it.")
        chosen, label = pick_columns(names, len(names), columns, labels, str(path))
        arrays = {}
        picked = [names[k] for k in (*chosen, *([] if label is None else [label]))]
        members = set(archive.zip.namelist())
        sizes = (archive.zip.getinfo(n if n in members else f"{n}.npy").file_size for n in picked)
        _refuse_bomb(path, sum(sizes))
        for name in picked:
            try:
                arrays[name] = archive[name]
            except Exception as error:
                raise ValueError(numpy_fault(f"{path}, {name}", error)) from error
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError(
                    f"{path}, {name} is no array. Name the arrays in columns=, or write the "
                    "archive with np.savez."
                )
    parts = tuple(names[k] for k in chosen)
    location = SourceLocation(str(path), parts=parts)
    for part, name in enumerate(parts):
        check_shape(arrays[name], location, part)
    if len({len(arrays[name]) for name in parts}) > 1:
        raise ValueError(
            f"{path}: its arrays have different numbers of rows: "
            + ", ".join(f"{name} {arrays[name].shape}" for name in parts)
            + ". Name those that belong together in columns=, and a class array in labels=."
        )
    store = memory_store([arrays[name] for name in parts], location, missing)
    return ReaderResult(store, None, None if label is None else arrays[names[label]])


def read_parquet(
    path: Path, columns: Columns = None, labels: str | int | None = None, missing: str = "error"
) -> ReaderResult:
    """Read a table; an index written by pandas is not a column."""
    return read_frame(_parquet_frame(path), str(path), columns, labels, missing)


def _parquet_frame(path: Path) -> "pd.DataFrame":
    import pandas as pd
    from pyarrow import ArrowException

    try:
        size = _parquet_bytes(path)
        frame = pd.read_parquet(path) if size <= _most_bytes(path) else pd.DataFrame()
    except Exception as error:
        reason = str(error) if isinstance(error, ArrowException | OSError) else "wrong metadata"
        raise ValueError(
            f"{path} cannot be read as Parquet ({reason}). Write or copy it again."
        ) from error
    _refuse_bomb(path, size)
    return frame


def _has_categories(path: Path) -> bool:
    """True for a Parquet file with a categorical column, which is read into memory."""
    from pyarrow import parquet, types

    try:
        return any(types.is_dictionary(field.type) for field in parquet.read_schema(path))
    except Exception:  # which the reader of the format names
        return False


def _read_frames(
    files: Sequence[Path], source: str, columns: Columns, labels: str | int | None, missing: str
) -> ReaderResult:
    """Read Parquet files into memory, with the union of their categories."""
    frames = [_parquet_frame(file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if list(frame.columns) != list(frames[0].columns):
            raise ValueError(
                f"{file} has the columns {list(frame.columns)}, and {files[0].name} has "
                f"{list(frames[0].columns)}. Put files with equal columns into one folder."
            )
    return read_frame(join_frames(frames), source, columns, labels, missing)


def _parquet_bytes(path: Path) -> int:
    """Bytes of a Parquet file's columns in memory, where equal values are not stored once."""
    from pyarrow import compute, parquet, types

    schema = parquet.read_schema(path)
    is_text = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    texts = [field.name for field in schema if any(test(field.type) for test in is_text)]
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        groups = [file.metadata.row_group(k) for k in range(file.num_row_groups)]
        parts = [group.column(k) for group in groups for k in range(group.num_columns)]
        size = sum(max(8 * part.num_values, part.total_uncompressed_size) for part in parts)
        if size > _most_bytes(path) or not texts:
            return size
        for column in file.read(columns=texts).columns:
            for chunk in column.chunks:
                longest = compute.max(compute.binary_length(chunk.dictionary)).as_py() or 0
                size += longest * len(chunk)
    return size


def _is_large_npy(path: Path) -> bool:
    return path.stat().st_size > MAP_ABOVE


def _is_large_parquet(path: Path) -> bool:
    """True for a table that is too large for memory, and no larger than its file explains."""
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
    except Exception:  # which the reader names
        return False
    return MAP_ABOVE < 8 * metadata.num_rows * metadata.num_columns <= _most_bytes(path)


def _most_bytes(path: Path) -> int:
    return max(MOST_BYTES, MOST_RATIO * path.stat().st_size)


def _refuse_bomb(path: Path, size: int) -> None:
    """Raise where the arrays of a small file would fill the memory."""
    if size > _most_bytes(path):
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, and its arrays would take {size:,}. "
            f"Above {MOST_BYTES:,} bytes a file may grow {MOST_RATIO}-fold: write the arrays that "
            "you need to .npy files, which are memory-mapped."
        )


@dataclass(frozen=True)
class Reader:
    """A file format: its function and description, if `header` applies, if it is read in blocks."""

    read: Callable[..., ReaderResult]
    description: str
    has_header: bool = False
    is_large: Callable[[Path], bool] = lambda path: False


# Extension -> reader. Error messages are made from this table; a test compares the help texts.
READERS: dict[str, Reader] = {
    ".csv": Reader(read_csv, "text, fields separated by commas or semicolons", has_header=True),
    ".tsv": Reader(read_csv, "text, fields separated by tabs", has_header=True),
    ".txt": Reader(read_csv, "text, fields separated by spaces, say", has_header=True),
    ".npy": Reader(read_npy, "one NumPy array", is_large=_is_large_npy),
    ".npz": Reader(read_npz, "several NumPy arrays with the same rows"),
    ".parquet": Reader(read_parquet, "a table", is_large=_is_large_parquet),
    ".arrow": Reader(read_files, "a table in Arrow's IPC format", is_large=lambda path: True),
    ".feather": Reader(read_files, "the same", is_large=lambda path: True),
}
