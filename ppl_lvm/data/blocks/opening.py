"""Files of a folder or pattern as one store.

The columns of all files are compared first. One pass then reads every block: it checks types and
missing values, counts rows, and samples rows uniformly. Rows that fit in memory stay there.
"""

import glob
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_lvm.core import distributed
from ppl_lvm.core.console import progress
from ppl_lvm.core.types import Array
from ppl_lvm.data.blocks.files import (
    FORMATS,
    BlockFile,
    Choice,
    CsvBlocks,
    NpyBlocks,
    require_small,
)
from ppl_lvm.data.blocks.store import BlockLocation, BlockStore
from ppl_lvm.data.rounding import warn_of_rounding
from ppl_lvm.data.stores import MemoryStore, ReaderResult
from ppl_lvm.data.validation import (
    Columns,
    SourceLocation,
    check_names,
    from_array,
    pick_columns,
)

SAMPLED_ROWS = 100_000  # as many as initial values are computed from
ROUNDING_ROWS = 1000  # of a file that are compared with their values in memory
SILENT_SECONDS, LINE_SECONDS = 2.0, 5.0  # of a pass


def is_pattern(path: Path) -> bool:
    """True for a pattern such as folder/*.parquet that is no file itself."""
    return glob.has_magic(str(path)) and not path.exists()


def matching_files(path: Path) -> list[Path]:
    """The files that a pattern or folder names, in the order of their names.

    Of a folder these are its Parquet files, or without any those of another format. Sub-folders
    are not read.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of several formats, or of an unknown one.
    """
    matches = glob.glob(str(path), recursive=True) if is_pattern(path) else path.iterdir()
    files = sorted(p for p in map(Path, matches) if p.is_file())
    if not is_pattern(path):  # a folder may hold notes, checksums and markers too
        files = [p for p in files if p.suffix.lower() in FORMATS and p.name[0] not in "._"]
        files = [p for p in files if p.suffix.lower() == ".parquet"] or files
    if not files and path.is_dir():
        raise ValueError(
            f"{path} is a folder without .parquet files, or others of one format. Name a file."
        )
    if not files:
        raise FileNotFoundError(
            f"No file has a name like {path}. Correct the pattern, as in rows/*.parquet."
        )
    folder = path.parent if is_pattern(path) else path
    kinds = sorted({p.suffix.lower() for p in files})
    if len({FORMATS.get(kind) for kind in kinds}) > 1 or kinds[0] not in FORMATS:
        raise ValueError(
            f"{path} names files ending in {', '.join(map(repr, kinds))}. Name those of one "
            f"format by a pattern, {folder / '*.parquet'}; formats: {', '.join(FORMATS)}."
        )
    return files


def read_files(
    paths: Sequence[Path],
    source: str,
    columns: Columns,
    label: str | int | None,
    missing: str,
    header: bool | None,
    *,
    buffer: int,
    most_in_memory: int,
) -> ReaderResult:
    """Rows of files of one format: in memory up to `most_in_memory` bytes, else on disk.

    Raises:
        ValueError: files of different columns or types, an unusable value, a damaged file.
    """
    files = tuple(FORMATS[path.suffix.lower()](path) for path in paths)
    choice, location = _choose(files, columns, label, header, source)
    if len(files) == 1 and isinstance(files[0], NpyBlocks) and label is None:
        return _unread(files[0], choice, location, missing, buffer)
    scan = _Scan(files, choice, location, missing, most_in_memory)
    scan.run()
    location = scan.location()
    names = None if location.columns is None else list(location.columns)
    labels = np.concatenate(scan.labels) if scan.labels else None
    if scan.parts is not None:
        tensors = (torch.from_numpy(np.concatenate(scan.parts)),)
        return ReaderResult(MemoryStore(tensors, location), names, labels)
    store = BlockStore(location, choice, missing, buffer, scan.sample())
    return ReaderResult(store, names, labels)


def _unread(
    file: NpyBlocks, choice: Choice, location: SourceLocation, missing: str, buffer: int
) -> ReaderResult:
    """One array, whose rows are checked when they are read."""
    firsts = np.concatenate([[0], np.cumsum(file.sizes)])
    blocks = tuple((0, k, int(first)) for k, first in enumerate(firsts[:-1]))
    located = BlockLocation(
        location.source, None, location.column_indices, files=(file,), blocks=blocks, offsets=firsts
    )
    some = file.read(0, choice)[0][:ROUNDING_ROWS]
    with np.errstate(over="ignore"):  # a number too large is an error when it is read
        converted = some.astype(str(torch.get_default_dtype()).removeprefix("torch."))
    warn_of_rounding(some, torch.from_numpy(converted), location)
    return ReaderResult(BlockStore(located, choice, missing, buffer))


def _choose(
    files: Sequence[BlockFile], columns: Columns, label: Any, header: bool | None, source: str
) -> tuple[Choice, SourceLocation]:
    """The columns to read, which every file must have."""
    first = files[0]
    if isinstance(first, CsvBlocks):
        chosen = None if columns is None else tuple(columns)
        return Choice(chosen, label, header), SourceLocation(source)
    names, count = first.layout.names, first.layout.shape[0] if first.layout.shape else 1
    if names is None and columns is None and label is None:
        choice, location = Choice(), SourceLocation(source)
    else:
        if names is None and len(first.layout.shape) != 1:
            raise ValueError(
                f"{first.path}: columns= and labels= choose columns of tables (N, P), and its rows "
                f"have shape {first.layout.shape}. Leave them out."
            )
        if names is not None:
            check_names(names, str(first.path))
        picked, place = pick_columns(names, count, columns, label, str(first.path))
        if names is None:
            choice = Choice(tuple(picked), place)
            location = SourceLocation(source, column_indices=tuple(picked))
        else:
            choice = Choice(tuple(names[k] for k in picked), label)
            location = SourceLocation(source, choice.columns)
            _require_numbers(first, choice)
    for other in files[1:]:
        _require_same(first, other, choice, exactly=columns is None)
    return choice, location


def _require_numbers(file: BlockFile, choice: Choice) -> None:
    kinds = dict(zip(file.layout.names or (), file.layout.kinds, strict=True))
    for name in choice.columns or ():
        if kinds[name] not in ("bool", "integer", "floating"):
            raise ValueError(
                f"{file.path}, column {name!r}: its type {kinds[name]} is no number. Convert it, "
                "omit it with columns=, or name it in labels= if it is the class."
            )


def _require_same(first: BlockFile, other: BlockFile, choice: Choice, *, exactly: bool) -> None:
    """Refuse a file that lacks a column of the first, or has it in another type or shape."""
    a, b = first.layout, other.layout
    if a.names is None or b.names is None:
        if (a.shape, a.kinds) != (b.shape, b.kinds):
            raise ValueError(
                f"{other.path} has rows of shape {b.shape} of type {b.kinds[0]}, {first.path} of "
                f"shape {a.shape} of type {a.kinds[0]}. Write all arrays alike."
            )
        return
    used = [*(choice.columns or ()), *([] if choice.label is None else [choice.label])]
    for name in used:
        if name not in b.names:
            raise ValueError(
                f"{other.path} has no column {name!r}, which {first.path} has. Write the column, "
                "or choose others with columns=."
            )
        kinds = [each.kinds[(each.names or ()).index(name)] for each in (a, b)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{other.path}, column {name!r}: its type is {kinds[1]}, and {kinds[0]} in "
                f"{first.path}. Write the column in one type."
            )
    extra = [name for name in b.names if name not in a.names]
    if exactly and extra:
        raise ValueError(
            f"{other.path} has a column {extra[0]!r}, which {first.path} lacks. Choose the columns "
            "of all files with columns=."
        )


class _Scan:
    """One pass over all blocks.

    Attributes:
        parts: values of the blocks, None once they exceed `most_in_memory` bytes.
        labels: of the blocks, where a column has some.
    """

    def __init__(
        self,
        files: tuple[BlockFile, ...],
        choice: Choice,
        location: SourceLocation,
        missing: str,
        most_in_memory: int,
    ) -> None:
        self.files, self.choice, self.missing = files, choice, missing
        self._location, self._most = location, most_in_memory
        self.parts: list[Array] | None = []
        self.labels: list[Array] = []
        self._blocks: list[tuple[int, int, int]] = []
        self._sizes: list[int] = []
        self._bytes = 0
        self._rng = np.random.default_rng(0)
        self._sampled: list[tuple[Array, Array, Array]] = []  # keys, numbers and values of rows
        self._waiting, self._bar = 0, 1.0  # sampled rows; keys of others are larger

    def run(self) -> None:
        total = sum(file.num_blocks for file in self.files)
        begun = shown = time.monotonic()
        with progress("load", shown=distributed.rank() == 0) as say:
            for done, (number, block) in enumerate(self._all_blocks()):
                self._read(number, block)
                now = time.monotonic()
                if say is not None and now - begun > SILENT_SECONDS and now - shown > LINE_SECONDS:
                    shown = now
                    say(self.files[number].path.name, done + 1, total)

    def _all_blocks(self) -> Iterator[tuple[int, int]]:
        """File and block of all blocks; a file without rows is refused."""
        for number, file in enumerate(self.files):
            before = sum(self._sizes)
            for block in range(file.num_blocks):
                yield number, block
            if sum(self._sizes) == before:
                raise ValueError(f"{file.path} has no rows. Write it again, or remove it.")

    def _read(self, number: int, block: int) -> None:
        file = self.files[number]
        values, labels = file.read(block, self.choice)
        if isinstance(file, CsvBlocks):
            self._compare(file)
        if not len(values):
            return
        where = file.name(block)
        require_small(where, values.nbytes)
        first = self._blocks[-1][2] + self._sizes[-1] if self._same_file(number) else 0
        location = SourceLocation(where, self._location.columns, self._location.column_indices)
        if labels is not None:
            self.labels.append(labels)
        tensor = from_array(
            values, location, rows=range(first, first + len(values)), missing=self.missing
        )
        if not self._blocks:
            warn_of_rounding(values[:ROUNDING_ROWS], tensor[:ROUNDING_ROWS], location)
        self._sample(tensor.numpy())
        self._blocks.append((number, block, first))
        self._sizes.append(len(values))
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > self._most:
            self.parts = None
        elif self.parts is not None:
            self.parts.append(tensor.numpy())

    def _same_file(self, number: int) -> bool:
        return bool(self._blocks) and self._blocks[-1][0] == number

    def _compare(self, file: BlockFile) -> None:
        """Columns of a text file, which are known once it is read."""
        first = self.files[0]
        if file is first:
            self._location = SourceLocation(self._location.source, file.layout.names)
        elif (file.layout.names, file.layout.shape) != (first.layout.names, first.layout.shape):
            shown = [f.layout.names or f"{f.layout.shape[0]} columns" for f in (file, first)]
            raise ValueError(
                f"{file.path} has the columns {shown[0]}, and {first.path} {shown[1]}. Write the "
                "same columns to all files, or choose some with columns=."
            )

    def _sample(self, values: Array) -> None:
        """Keep the rows with the smallest random keys: a uniform sample of those read so far."""
        keys, start = self._rng.random(len(values)), sum(self._sizes)
        few = np.flatnonzero(keys < self._bar)
        self._sampled.append((keys[few], start + few, values[few]))
        self._waiting += len(few)
        if self._waiting > 2 * SAMPLED_ROWS:
            self._reduce()

    def _reduce(self) -> None:
        """Drop all but the sampled rows."""
        keys, rows, values = (np.concatenate(x) for x in zip(*self._sampled, strict=True))
        if len(keys) > SAMPLED_ROWS:
            lowest = np.argpartition(keys, SAMPLED_ROWS)[:SAMPLED_ROWS]
            keys, rows, values = keys[lowest], rows[lowest], values[lowest]
            self._bar = keys.max()
        self._sampled, self._waiting = [(keys, rows, values)], len(keys)

    def sample(self) -> tuple[Array, Array]:
        """Numbers and values of the sampled rows, in ascending order."""
        self._reduce()
        _, rows, values = self._sampled[0]
        order = np.argsort(rows)
        return rows[order], values[order]

    def location(self) -> BlockLocation:
        """Location of all rows."""
        located = self._location
        return BlockLocation(
            located.source,
            located.columns,
            located.column_indices,
            files=self.files,
            blocks=tuple(self._blocks),
            offsets=np.concatenate([[0], np.cumsum(self._sizes)]),
        )
