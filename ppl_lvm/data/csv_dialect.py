"""Separator, comments and header of a text file."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

SEPARATORS = (",", ";", "\t")
_SAMPLE = 64  # lines from which the separator is inferred

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE
)

# Common spellings of a missing value, in any case.
MISSING_VALUES = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


@dataclass(frozen=True)
class Dialect:
    """Separator, header and comments of a text file.

    Attributes:
        separator: a comma, a semicolon, a tab, or a space for any number of spaces.
        first: fields of the first record, stripped.
        first_line: the line on which that record ends, from 1.
        names: names that stand in a comment above the first record, as `numpy.savetxt` writes
            them, else None.
        is_plain: no line is a comment and the separator is not a space.
    """

    separator: str
    first: list[str]
    first_line: int
    names: list[str] | None
    is_plain: bool

    @property
    def decimals(self) -> tuple[str, ...]:
        """Decimal marks that numbers can have: a comma only if it is not the separator."""
        return (".",) if self.separator == "," else (".", ",")

    def is_number(self, text: str) -> bool:
        return any(is_number(text, decimal) for decimal in self.decimals)

    def rows(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Last line and fields of every record that is not a comment."""
        for line, fields in split(lines, self.separator):
            if not _is_comment(fields, len(self.first)):
                yield line, fields


def detect(path: Path, has_hash: bool) -> Dialect:
    """The dialect of a file.

    A line is a comment if it begins with # and has another number of fields than the first record.
    `has_hash` says that some line begins so.

    Raises:
        ValueError: the file begins with an empty line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        sample = list(islice(file, _SAMPLE))
        separator = _separator([line for line in sample if not line.startswith("#")])
        above: list[str] | None = None
        for line, fields in split(chain(sample, file), separator):
            if not fields:
                raise ValueError(f"{path} begins with an empty line. Begin with the column names.")
            if fields[0].startswith("#") and (fields[0].strip() != "#" or len(fields) == 1):
                above = [fields[0][1:], *fields[1:]]
                continue
            first = [field.strip() for field in fields]
            plain = not has_hash and separator != " "
            names = above and [name.strip() for name in above]
            dialect = Dialect(separator, first, line, None, plain)
            if names and len(names) == len(first) and all(map(dialect.is_number, first)):
                return Dialect(separator, first, line, names, plain)
            return dialect
    raise ValueError(f"{path} has comments and no rows. Check the program that wrote it.")


def split(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Last line, from 1, and fields of every record."""
    spaces = separator == " "
    stripped = (line.strip(" \t\r\n") for line in lines) if spaces else lines
    reader = csv.reader(stripped, delimiter=separator, skipinitialspace=spaces, strict=True)
    for fields in reader:
        yield reader.line_num, fields


def is_number(text: str, decimal: str = ".") -> bool:
    try:
        to_number(text, decimal)
    except ValueError:
        return False
    return True


def to_number(text: str, decimal: str = ".") -> float:
    """The number that a text spells with this decimal mark."""
    if decimal == ",":
        if "." in text:
            raise ValueError(text)
        text = text.replace(",", ".")
    text = text.strip()
    if not _NUMBER.fullmatch(text):  # float() also reads 1_000 and the digits of other scripts
        raise ValueError(text)
    return float(text)


def to_integer(text: str) -> int:
    """The integer of 64 bits that a text spells, a `ValueError` for others."""
    if not _INTEGER.fullmatch(text) or abs(int(text)) >= 2**63:
        raise ValueError(text)
    return int(text)


def _is_comment(fields: list[str], width: int) -> bool:
    return bool(fields) and fields[0].startswith("#") and (len(fields) != width or width == 1)


def _separator(lines: list[str]) -> str:
    """The separator under which all lines have the same number of fields, at least two.

    If several do, the one under which most fields of the last line are numbers, then the first in
    `SEPARATORS`. Spaces count
    only if no other separator does and all fields of the last line are numbers: a name may have
    spaces.
    """
    best, most = ",", -1.0
    for separator in (*SEPARATORS, " "):
        try:
            records = [fields for _, fields in split(lines, separator) if any(fields)]
        except csv.Error:
            continue
        if separator == " ":
            records = [[field for field in fields if field] for fields in records]
        if len({len(fields) for fields in records}) != 1 or len(records[0]) < 2:
            continue
        decimals = "." if separator == "," else ".,"
        numbers = [
            text.strip().lower() in MISSING_VALUES or any(is_number(text, d) for d in decimals)
            for text in records[-1]
        ]
        if separator == " " and (most >= 0 or not all(numbers)):
            continue
        if (share := sum(numbers) / len(numbers)) > most:
            best, most = separator, share
    return best


def begins_with_hash(text: str) -> bool:
    """True if some line of a text begins with #."""
    return re.search(r"^#", text, re.MULTILINE) is not None
