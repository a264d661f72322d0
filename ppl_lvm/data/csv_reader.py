"""Strict reader of text tables; errors name line and column.

pyarrow parses the values. It is stricter here than pandas: a line with too few fields, an empty
line between rows and a first line 0, 1, 2, … (column numbers or data?) are errors. Lines are
scanned a second time only where pyarrow cannot tell their numbers: after a fault, in files with
quotes, comments or spaces for separators, and in files with empty lines.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from ppl_lvm.core.types import Array
from ppl_lvm.data.csv_dialect import (
    MISSING_VALUES,
    Dialect,
    begins_with_hash,
    detect,
    is_number,
    to_integer,
    to_number,
)
from ppl_lvm.data.stores import ReaderResult, memory_store
from ppl_lvm.data.validation import Columns, SourceLocation, check_names, pick_columns

BLOCK = 16 * 2**20  # bytes that pyarrow parses at a time, more than any row has

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
    """Read UTF-8 text with the same number of fields on every line.

    Commas, semicolons, tabs or spaces separate the fields, the same in the whole file. Numbers have
    decimal points, or all have decimal commas where commas do not separate. The first line is
    the header unless all its fields are numbers; `header` overrides this. It must be given for a
    first line 0, 1, 2, …, for one of years in order above rows of other numbers, and for one of
    numbers and texts where the second line has texts in the same columns, or the numbers are not
    in steps as in name,2019,2020. Only ASCII
    digits without underscores are numbers. Empty fields, NA, N/A,
    NaN, null, None and ? are missing values. Lines that begin with # and have another number of
    fields than the first record are comments. Lines count from 1 with the header. Empty lines at
    the end of the file are ignored.

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
    num_lines, has_quotes, has_hash = _survey(path)
    dialect = detect(path, has_hash)
    first = dialect.first
    names = dialect.names if header is None else None
    skip = dialect.first_line - 1
    named = [name for name in (labels, *(columns or ())) if isinstance(name, str)]
    if names is None and (
        (header is None and set(named) & set(dialect.first)) or _is_header(path, dialect, header)
    ):
        names, skip = first, dialect.first_line
    if names is not None:
        # A column without a name is allowed unless it is used.
        check_names([name for name in names if name or columns is None], str(path))
    chosen, label = pick_columns(names, len(first), columns, labels, str(path))
    location = (
        SourceLocation(str(path), column_indices=tuple(chosen))
        if names is None
        else SourceLocation(str(path), tuple(names[k] for k in chosen))
    )
    table = _parse(path, skip, dialect, chosen, label, has_quotes)
    records: list[tuple[int, list[str]]] = []
    lines = np.arange(skip + 1, num_lines + 1)
    if table is None or has_quotes or len(table) != len(lines):
        records = list(_records(path, skip, dialect))
        lines = np.array([line for line, _ in records], np.int64)
    if len(lines) == 0:
        raise ValueError(f"{path} has a header and no rows. Check the program that wrote it.")
    if table is None or len(table) != len(lines):
        texts = [[fields[k] for k in chosen] for _, fields in records]
        values = _convert(texts, lines, location, dialect)
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
        None if classes is None else _labels(classes, lines, labels, path, dialect),
    )


def _survey(path: Path) -> tuple[int, bool, bool]:
    """Number of lines up to the last that is not empty; are there quotes, lines that begin with #.

    A byte-order mark is no part of the first line.
    """
    count, blank, has_quotes, has_hash = 0, "", False, False
    with path.open(encoding="utf-8-sig", newline="") as file:
        begins_line = True
        for block in iter(partial(file.read, 2**20), ""):
            if "\0" in block:
                raise ValueError(
                    f"{path} holds NUL bytes: it is no text, or UTF-16. Save it as UTF-8 text."
                )
            body = block.rstrip("\r\n")
            if body:
                count += blank.count("\n") + body.count("\n")
                blank = ""
            blank += block[len(body) :]
            has_quotes = has_quotes or '"' in body
            has_hash = has_hash or begins_with_hash(block if begins_line else "." + block)
            begins_line = block.endswith(("\r", "\n"))
    return count + 1, has_quotes, has_hash


def _is_header(path: Path, dialect: Dialect, header: bool | None) -> bool:
    """True if the first line has names; an ambiguous line raises."""
    if header is not None:
        return header
    first = dialect.first
    cells = first[1:] if first[0] == "" else first
    columns = cells == [str(k) for k in range(len(cells))]
    second = _second_record(path, dialect)
    texts = [not (dialect.is_number(c) or c.lower() in MISSING_VALUES) for c in first]
    kinds = [not (dialect.is_number(c) or c.lower() in MISSING_VALUES) for c in second]
    numbers = [cell for cell in first if dialect.is_number(cell)]
    mixed = any(texts) and numbers and (texts == kinds or not _are_in_steps(numbers))
    if columns or mixed or (_are_years(first) and not _are_years(second)):
        raise ValueError(
            f"{path}, line {dialect.first_line}: {','.join(first)} may be "
            f"{'column numbers' if columns else 'names of columns'} or data. Pass "
            "header=True or header=False, or put names into the first line."
        )
    return any(texts)


def _are_in_steps(fields: list[str]) -> bool:
    """True for two or more whole numbers at equal distances, as columns may be named."""
    if len(fields) < 2 or not all(field.isdecimal() for field in fields):
        return False
    steps = {int(b) - int(a) for a, b in pairwise(fields)}
    return len(steps) == 1 and steps != {0}


def _are_years(fields: list[str]) -> bool:
    """True for two or more years in order, at equal distances."""
    years = all(re.fullmatch(r"(1[89]|20|21)[0-9]{2}", text) for text in fields)
    return years and _are_in_steps(fields)


def _second_record(path: Path, dialect: Dialect) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        records = (fields for line, fields in dialect.rows(file) if line > dialect.first_line)
        return [field.strip() for field in next(records, [])]


def _parse(
    path: Path,
    skip: int,
    dialect: Dialect,
    chosen: list[int],
    label: int | None,
    has_quotes: bool,
) -> Any:
    """Table with the chosen columns as floats and the label as text; None after any fault."""
    from pyarrow import ArrowInvalid, float64, string
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions
    from pyarrow.csv import read_csv as parse

    if not dialect.is_plain:
        return None
    types = {str(k): float64() for k in chosen}
    if label is not None:
        types[str(label)] = string()
    size = path.stat().st_size
    reading = ReadOptions(
        column_names=[str(k) for k in range(len(dialect.first))],
        skip_rows=skip,
        block_size=min(size + 1, BLOCK),
        use_threads=size > BLOCK,
    )
    parsing = ParseOptions(delimiter=dialect.separator, newlines_in_values=has_quotes)
    for decimal in dialect.decimals:
        converting = ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=SPELLINGS,
            decimal_point=decimal,
        )
        with suppress(ArrowInvalid):
            return parse(path, reading, parsing, converting)
    return None


def _records(path: Path, skip: int, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row.

    Raises:
        ValueError: for an empty line between rows, or a line with another number of fields.
    """
    empty, width = None, len(dialect.first)
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line, fields in dialect.rows(file):
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


def _convert(
    texts: list[list[str]], lines: Array, location: SourceLocation, dialect: Dialect
) -> Array:
    """Numbers (N, P), NaN where a value is missing.

    Raises:
        ValueError: for the first text that is no number.
    """
    values = np.full((len(texts), len(texts[0])), np.nan)
    numbers = [text for row in texts for text in row if text.strip().lower() not in MISSING_VALUES]
    fits = [d for d in dialect.decimals if all(is_number(text, d) for text in numbers)]
    decimal = fits[0] if fits else "."
    for n, row in enumerate(texts):
        for p, text in enumerate(row):
            if is_number(text, decimal):
                values[n, p] = to_number(text, decimal)
            elif text.strip().lower() not in MISSING_VALUES:
                hint = (
                    " Write all numbers with decimal points, or all with decimal commas."
                    if dialect.is_number(text)
                    else ""
                )
                raise ValueError(
                    f"{location.source}, line {lines[n]}, {location.column(p)}: {text!r} is not a "
                    f"number.{hint} Correct it, choose the numeric columns with columns=, or name "
                    "the column in labels= if it is the class."
                )
    return values


def _labels(
    texts: list[str], lines: Array, name: str | int | None, path: Path, dialect: Dialect
) -> Array:
    """Labels (N,) as integers, floats or text: the first type that fits all."""
    texts = [text.strip() for text in texts]
    for text, line in zip(texts, lines, strict=True):
        if text.lower() in MISSING_VALUES:
            raise ValueError(
                f"{path}, line {line}, column {name!r}: the label is missing. Fill it in, or load "
                "without labels=."
            )
    try:
        return np.array([to_integer(text) for text in texts])
    except ValueError:
        pass
    for decimal in dialect.decimals:
        with suppress(ValueError):
            return np.array([to_number(text, decimal) for text in texts])
    return np.array(texts)
