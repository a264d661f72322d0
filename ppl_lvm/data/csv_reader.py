"""Comma-separated text becomes rows of numbers, or an error that names line and column.

Strict where pandas is kind: a line with too few fields is a fault and not a row with gaps, an
empty line between rows is a fault and not skipped, and a first line of numbers that counts
0, 1, 2 is a question and not an answer.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from ppl_lvm.data.stores import Loaded, memory_store
from ppl_lvm.data.validation import Array, Columns, SourceLocation, check_names, pick_columns

CHUNK = 8192  # lines turned into numbers at a time, so that the text never stands whole in memory

# What people write for a value they do not have.
ABSENT = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


def read_csv(
    path: Path,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
    header: bool | None = None,
) -> Loaded:
    """Read UTF-8 text with commas, every line with as many fields as the first.

    The first line is the header unless all its fields are numbers; `header` says it outright.
    Empty fields, NA, N/A, NaN, null, None and ? are missing values. Lines count from 1 with the
    header. Empty lines at the very end of the file are not rows.

    Raises:
        ValueError: for any other fault of the text, naming line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = csv.reader(file, strict=True)
            first = [name.strip() for name in next(text, [])]
            if not first:
                raise ValueError(f"{path} begins with an empty line. Begin with the column names.")
            named = _is_header(path, first, header)
            table = _Table(path, first, named, columns, labels)
            rows = ((text.line_num, row) for row in text)
            table.fill(rows if named else chain([(1, first)], rows))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(
            f"{path} is not well-formed CSV ({error}). Is a quote left open, or the file cut short?"
        ) from error
    return table.loaded(missing)


def _is_header(path: Path, first: list[str], header: bool | None) -> bool:
    """Names or numbers? Refuse to guess when the line reads both ways."""
    if header is not None:
        return header
    cells = first[1:] if first[0] == "" else first
    if cells == [str(k) for k in range(len(cells))]:
        raise ValueError(
            f"{path}, line 1: {','.join(first)} may be column numbers or data. Say which with "
            "header=True or header=False, or put names into the first line."
        )
    return not all(_is_number(cell) or cell.lower() in ABSENT for cell in first)


@dataclass
class _Table:
    """Rows being collected, a chunk of lines at a time."""

    path: Path
    first: list[str]
    named: bool
    columns: Columns
    labels: str | int | None
    blocks: list[Array] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        source, names = str(self.path), self.first if self.named else None
        if names is not None:
            # A nameless column does no harm while nobody takes it.
            check_names([name for name in names if name or self.columns is None], source)
        self.chosen, self.label = pick_columns(
            names, len(self.first), self.columns, self.labels, source
        )
        picked = tuple(self.first[k] for k in self.chosen)
        self.place = (
            SourceLocation(source, picked)
            if self.named
            else SourceLocation(source, kept=(*self.chosen,))
        )

    def fill(self, rows: Iterable[tuple[int, list[str]]]) -> None:
        """Take all rows (line, fields)."""
        pending: list[tuple[int, list[str]]] = []
        empty = None
        for line, row in rows:
            if not row:
                empty = line if empty is None else empty
                continue
            self._check_row(line, row, empty)
            pending.append((line, row))
            if len(pending) == CHUNK:
                self._add(pending)
                pending = []
        self._add(pending)

    def _check_row(self, line: int, row: list[str], empty: int | None) -> None:
        if empty is not None:
            raise ValueError(
                f"{self.path}, line {empty} is empty, and rows follow. Remove it or fill it in."
            )
        if len(row) != len(self.first):
            raise ValueError(
                f"{self.path}, line {line} has {len(row)} fields, the first line has "
                f"{len(self.first)}. Is the file cut short, or a comma in a text without quotes?"
            )

    def _add(self, rows: list[tuple[int, list[str]]]) -> None:
        if not rows:
            return
        fields = [[row[k] for k in self.chosen] for _, row in rows]
        try:
            block = np.array(fields, dtype=np.float64)  # (n, P)
        except ValueError:  # some field is missing or text: go through them one by one
            block = self._one_by_one(fields, [line for line, _ in rows])
        self.blocks.append(block)
        self.lines += [line for line, _ in rows]
        if self.label is not None:
            self.classes += [self._class(line, row[self.label]) for line, row in rows]

    def _one_by_one(self, fields: list[list[str]], lines: list[int]) -> Array:
        """Numbers (n, P) with NaN where a value is missing."""
        block = np.full((len(fields), len(self.chosen)), np.nan)
        for n, row in enumerate(fields):
            for p, text in enumerate(row):
                if _is_number(text):
                    block[n, p] = float(text)
                elif text.strip().lower() not in ABSENT:
                    hint = next(
                        (f" Are the fields separated by {c!r}?" for c in ";\t" if c in text), ""
                    )
                    raise ValueError(
                        f"{self.path}, line {lines[n]}, {self.place.column(p)}: {text!r} is not a "
                        f"number.{hint} Correct it, choose the numeric columns with columns=, or "
                        "name the column in labels= if it is the class."
                    )
        return block

    def _class(self, line: int, text: str) -> str:
        if text.strip().lower() in ABSENT:
            raise ValueError(
                f"{self.path}, line {line}, column {self.labels!r}: the label is missing. Fill it "
                "in, or load without labels=."
            )
        return text.strip()

    def loaded(self, missing: str) -> Loaded:
        """The rows as tensors; labels as whole numbers, numbers or text, whichever all are."""
        if not self.blocks:
            raise ValueError(f"{self.path} has a header and no rows. Check what wrote it.")
        place = replace(self.place, lines=np.array(self.lines, np.int64))
        store = memory_store([np.concatenate(self.blocks)], place, missing)
        names = list(place.columns) if place.columns is not None else None
        return Loaded(store, names, None if self.label is None else _typed(self.classes))


def _typed(values: list[str]) -> Array:
    for kind in (np.int64, np.float64):
        try:
            return np.array([kind(value) for value in values])
        except (ValueError, OverflowError):
            continue
    return np.array(values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
