"""Strict CSV reader with errors that name line and column.

pyarrow parses the values. It is stricter here than pandas: a line with too few fields, an empty
line between rows and a first line 0, 1, 2, … (column numbers or data?) are errors. Lines are
scanned a second time only where pyarrow cannot tell their numbers: after a fault, in files with
quotes, and in files with empty lines.
"""

import csv
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ppl_lvm.core.types import Array
from ppl_lvm.data.stores import ReaderResult, memory_store
from ppl_lvm.data.validation import Columns, SourceLocation, check_names, pick_columns

BLOCK = 16 * 2**20  # bytes that pyarrow parses at a time, more than any row has

# Common spellings of a missing value, in any case.
MISSING_VALUES = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
SPELLINGS = sorted(
    {
        "".join(letters)
        for word in MISSING_VALUES
        for letters in product(*zip(word, word.upper(), strict=True))
    }
)


def read_csv(
    path: Path,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
    header: bool | None = None,
) -> ReaderResult:
    """Read UTF-8 text with commas and the same number of fields on every line.

    The first line is the header unless all its fields are numbers; `header` overrides this.
    Empty fields, NA, N/A, NaN, null, None and ? are missing values. Lines count from 1 with the
    header. Empty lines at the end of the file are ignored.

    Raises:
        ValueError: for any other fault of the text, naming line and column.
    """
    try:
        return _read(path, columns, labels, missing, header)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(
            f"{path} is not well-formed CSV ({error}). Close the open quote, or copy the file "
            "again if it was cut short."
        ) from error


def _read(
    path: Path, columns: Columns, labels: str | int | None, missing: str, header: bool | None
) -> ReaderResult:
    num_lines, has_quotes = _survey(path)
    first, skip = _first_record(path)
    has_header = _is_header(path, first, header)
    if not has_header:
        skip = 0
    names = first if has_header else None
    if names is not None:
        # A column without a name is allowed unless it is used.
        check_names([name for name in names if name or columns is None], str(path))
    chosen, label = pick_columns(names, len(first), columns, labels, str(path))
    location = (
        SourceLocation(str(path), column_indices=tuple(chosen))
        if names is None
        else SourceLocation(str(path), tuple(names[k] for k in chosen))
    )
    table = _parse(path, skip, len(first), chosen, label, has_quotes)
    records: list[tuple[int, list[str]]] = []
    lines = np.arange(skip + 1, num_lines + 1)
    if table is None or has_quotes or len(table) != len(lines):
        records = list(_records(path, skip, len(first)))
        lines = np.array([line for line, _ in records], np.int64)
    if len(lines) == 0:
        raise ValueError(f"{path} has a header and no rows. Check the program that wrote it.")
    if table is None or len(table) != len(lines):
        texts = [[fields[k] for k in chosen] for _, fields in records]
        values = _convert(texts, lines, location)
        classes = None if label is None else [fields[label] for _, fields in records]
    else:
        values = np.stack([table[str(k)].to_numpy() for k in chosen], axis=1)
        classes = None if label is None else table[str(label)].to_pylist()
    located = SourceLocation(
        location.source, location.columns, column_indices=location.column_indices, lines=lines
    )
    return ReaderResult(
        memory_store([values], located, missing),
        None if location.columns is None else list(location.columns),
        None if classes is None else _labels(classes, lines, labels, path),
    )


def _survey(path: Path) -> tuple[int, bool]:
    """Number of lines up to the last that is not empty, and whether there are quotes."""
    count, blank, has_quotes = 0, "", False
    with path.open(encoding="utf-8-sig", newline="") as file:
        for block in iter(partial(file.read, 2**20), ""):
            body = block.rstrip("\r\n")
            if body:
                count += blank.count("\n") + body.count("\n")
                blank = ""
            blank += block[len(body) :]
            has_quotes = has_quotes or '"' in body
    return count + 1, has_quotes


def _first_record(path: Path) -> tuple[list[str], int]:
    """Fields of the first record, and the number of its last line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        fields = [name.strip() for name in next(reader, [])]
        if not fields:
            raise ValueError(f"{path} begins with an empty line. Begin with the column names.")
        return fields, reader.line_num


def _is_header(path: Path, first: list[str], header: bool | None) -> bool:
    """True if the first line has names; an ambiguous line raises."""
    if header is not None:
        return header
    cells = first[1:] if first[0] == "" else first
    if cells == [str(k) for k in range(len(cells))]:
        raise ValueError(
            f"{path}, line 1: {','.join(first)} may be column numbers or data. Pass header=True "
            "or header=False, or put names into the first line."
        )
    return not all(_is_number(cell) or cell.lower() in MISSING_VALUES for cell in first)


def _parse(
    path: Path, skip: int, width: int, chosen: list[int], label: int | None, has_quotes: bool
) -> Any:
    """Table with the chosen columns as floats and the label as text; None after any fault."""
    from pyarrow import ArrowInvalid, float64, string
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions
    from pyarrow.csv import read_csv as parse

    types = {str(k): float64() for k in chosen}
    if label is not None:
        types[str(label)] = string()
    size = path.stat().st_size
    try:
        return parse(
            path,
            ReadOptions(
                column_names=[str(k) for k in range(width)],
                skip_rows=skip,
                block_size=min(size + 1, BLOCK),
                use_threads=size > BLOCK,
            ),
            ParseOptions(newlines_in_values=has_quotes),
            ConvertOptions(column_types=types, include_columns=list(types), null_values=SPELLINGS),
        )
    except ArrowInvalid:
        return None


def _records(path: Path, skip: int, width: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row.

    Raises:
        ValueError: for an empty line between rows, or a line with another number of fields.
    """
    empty = None
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        for fields in reader:
            line = reader.line_num
            if line <= skip:
                continue
            if not fields:
                empty = empty or line
                continue
            if empty is not None:
                raise ValueError(
                    f"{path}, line {empty} is empty, and rows follow. Remove it or fill it in."
                )
            if len(fields) != width:
                raise ValueError(
                    f"{path}, line {line} has {len(fields)} fields, the first line has {width}. "
                    "Copy the file again if it was cut short, and quote texts that have commas."
                )
            yield line, fields


def _convert(texts: list[list[str]], lines: Array, location: SourceLocation) -> Array:
    """Numbers (N, P), NaN where a value is missing.

    Raises:
        ValueError: for the first text that is no number.
    """
    values = np.full((len(texts), len(texts[0])), np.nan)
    for n, row in enumerate(texts):
        for p, text in enumerate(row):
            if _is_number(text):
                values[n, p] = float(text)
            elif text.strip().lower() not in MISSING_VALUES:
                separator = next((c for c in ";\t" if c in text), None)
                hint = (
                    "" if separator is None else f" Separate the fields by ',' not {separator!r}."
                )
                raise ValueError(
                    f"{location.source}, line {lines[n]}, {location.column(p)}: {text!r} is not a "
                    f"number.{hint} Correct it, choose the numeric columns with columns=, or name "
                    "the column in labels= if it is the class."
                )
    return values


def _labels(texts: list[str], lines: Array, name: str | int | None, path: Path) -> Array:
    """Labels (N,) as integers, floats or text: the first type that fits all."""
    texts = [text.strip() for text in texts]
    for text, line in zip(texts, lines, strict=True):
        if text.lower() in MISSING_VALUES:
            raise ValueError(
                f"{path}, line {line}, column {name!r}: the label is missing. Fill it in, or load "
                "without labels=."
            )
    for kind in (np.int64, np.float64):
        try:
            return np.array([kind(text) for text in texts])
        except (ValueError, OverflowError):
            continue
    return np.array(texts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
