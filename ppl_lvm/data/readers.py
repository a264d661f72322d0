"""Files become rows of numbers: .csv, .npy, .npz, .parquet.

    read(path, columns=..., labels=..., missing=..., header=...) -> Loaded

Nothing is guessed, filled or skipped, and every fault is an error that names file, row and
column. `.npy` files above `MAP_ABOVE` bytes are memory-mapped. Nothing is unpickled.
"""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ppl_lvm.data.csv_reader import read_csv
from ppl_lvm.data.stores import Loaded, MappedStore, memory_store
from ppl_lvm.data.validation import (
    Array,
    Columns,
    SourceLocation,
    check_names,
    check_shape,
    pick_columns,
    suggest,
)

MAP_ABOVE = 64 * 2**20  # bytes


def read(
    path: Path,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
    header: bool | None = None,
) -> Loaded:
    """Read a file by its extension.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: for an unknown extension and for every fault of the contents.
    """
    readers = {".npy": read_npy, ".npz": read_npz, ".parquet": read_parquet}
    suffix = path.suffix.lower()
    if suffix != ".csv" and suffix not in readers:
        raise ValueError(
            f"{path}: files ending in {suffix or 'nothing'!r} are not read, only .csv, "
            f"{', '.join(readers)}. Convert the file, or give an array in Python."
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file in it.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; {_neighbor(path, ['.csv', *readers])}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Check what wrote it.")
    if suffix == ".csv":
        return read_csv(path, columns, labels, missing, header)
    if header is not None:
        raise ValueError(f"{path}: header={header} is a question about .csv files only.")
    return readers[suffix](path, columns, labels, missing)


def _neighbor(path: Path, suffixes: list[str]) -> str:
    """What could have been meant instead of a file that is not there."""
    if not path.parent.is_dir():
        return f"nor is there a folder {path.parent}."
    names = sorted(other.name for other in path.parent.iterdir() if other.suffix in suffixes)
    return suggest(path.name, names) if names else f"{path.parent.resolve()} holds no data files."


def read_npy(
    path: Path, columns: Columns = None, labels: str | int | None = None, missing: str = "error"
) -> Loaded:
    """One array (N, ...); above `MAP_ABOVE` bytes it stays in its file."""
    large = path.stat().st_size > MAP_ABOVE
    try:
        array = np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(_numpy_fault(str(path), error)) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz archive by content. Rename it to .npz.")
    place = SourceLocation(str(path))
    check_shape(array, place)
    classes = None
    kept = None
    if columns is not None or labels is not None:
        kept, classes, place = pick_from_array(array, place, columns, labels)
    if large:
        return Loaded(MappedStore(path, array, place, kept, missing), None, classes)
    values = array if kept is None else array[:, kept]
    return Loaded(memory_store([values], place, missing), None, classes)


def pick_from_array(
    array: Array, place: SourceLocation, columns: Columns, labels: str | int | None
) -> tuple[list[int], Array | None, SourceLocation]:
    """Columns of an array (N, P) by index: those kept, the labels (N,), and their place."""
    if array.ndim != 2:
        raise ValueError(
            f"{place.source} has shape {array.shape}; columns= and labels= choose columns of a "
            "table (N, P). For arrays of another shape choose in Python."
        )
    kept, label = pick_columns(None, array.shape[1], columns, labels, place.source)
    classes = None if label is None else np.array(array[:, label])
    return kept, classes, replace(place, kept=tuple(kept))


def read_npz(
    path: Path, columns: Columns = None, labels: str | int | None = None, missing: str = "error"
) -> Loaded:
    """Several arrays with rows in common: `columns` names those for the model, in order."""
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(_numpy_fault(str(path), error)) from error
        if isinstance(archive, np.ndarray):
            raise ValueError(f"{path} is an .npy file by content. Rename it to .npy.")
        names = list(archive.files)
        if not names:
            raise ValueError(f"{path} holds no arrays. Check what wrote it.")
        chosen, label = pick_columns(names, len(names), columns, labels, str(path))
        wanted = chosen if label is None else [*chosen, label]
        arrays = {}
        for name in (names[k] for k in wanted):
            try:
                arrays[name] = archive[name]
            except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(_numpy_fault(f"{path}, {name}", error)) from error
    parts = tuple(names[k] for k in chosen)
    place = SourceLocation(str(path), parts=parts)
    for part, name in enumerate(parts):
        check_shape(arrays[name], place, part)
    if len({len(arrays[name]) for name in parts}) > 1:
        raise ValueError(
            f"{path}: its arrays have different numbers of rows: "
            + ", ".join(f"{name} {arrays[name].shape}" for name in parts)
            + ". Name those that belong together in columns=, and a class array in labels=."
        )
    store = memory_store([arrays[name] for name in parts], place, missing)
    return Loaded(store, None, None if label is None else arrays[names[label]])


def read_parquet(
    path: Path, columns: Columns = None, labels: str | int | None = None, missing: str = "error"
) -> Loaded:
    """A table; an index that pandas wrote is not a column."""
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's errors are kinds of these
        raise ValueError(
            f"{path} cannot be read as Parquet ({error}). Is it complete? Write it again."
        ) from error
    return read_frame(frame, str(path), columns, labels, missing)


def read_frame(
    frame: pd.DataFrame,
    source: str,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
) -> Loaded:
    """A pandas DataFrame; columns are chosen by name."""
    names = [str(name) for name in frame.columns]
    if len(frame) == 0:
        raise ValueError(f"{source} has no rows. Check what made it.")
    check_names(names, source)
    chosen, label = pick_columns(names, len(names), columns, labels, source)
    picked = tuple(names[k] for k in chosen)
    place = SourceLocation(source, picked)
    for k in chosen:
        _check_column(frame.iloc[:, k], f"{source}, column {names[k]!r}")
    table = frame.iloc[:, chosen].to_numpy(dtype=np.float64, na_value=np.nan)
    store = memory_store([table], place, missing)
    if label is None:
        return Loaded(store, list(picked))
    return Loaded(store, list(picked), frame.iloc[:, label].to_numpy())


def _check_column(column: "pd.Series[float]", where: str) -> None:
    """Refuse a column that is not numbers, showing the first value that is not one."""
    if column.dtype.kind in "biuf":  # pandas' own nullable types have a kind too
        return
    shown = next((repr(value) for value in column if isinstance(value, str)), None)
    first = next((k for k, value in enumerate(column) if isinstance(value, str)), None)
    at = "" if first is None else f", row {first + 1} (index {first}): {shown}"
    raise ValueError(
        f"{where}{at} is not a number; the column's type is {column.dtype}. Convert it, leave it "
        "out with columns=, or name it in labels= if it is the class."
    )


def _numpy_fault(where: str, error: Exception) -> str:
    if "Object arrays" in str(error):
        return (
            f"{where} holds Python objects, which only unpickling could load, and that may run "
            "code. Save it again as numbers: np.save(path, array.astype(float))."
        )
    fault = "what it holds is not an array" if "pickle" in str(error) else error
    return f"{where} is not a complete NumPy file ({fault}). Is it cut short? Write it again."
