"""Numbers from outside become tensors here, or an error that says where the bad one stands.

A model sees floating-point tensors of torch's default type. Arrays, frames and files are numbers
without a will of their own, so their integers and booleans become floats too: every discrete
likelihood of Pyro takes floats (`Bernoulli` takes nothing else), and a program that indexes with
a class writes `y.long()`. Torch tensors keep their integer types, because whoever made them in
torch chose them.

Rows and columns are named as a person sees them: in a text file by the line (the header is line
1), everywhere else counted from 1 with Python's index beside it.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

Columns = Sequence[str] | Sequence[int] | None

MISSING = ("error", "keep")


@dataclass(frozen=True)
class SourceLocation:
    """Where a value came from, for messages.

    `source` is the file or set. `columns` are the columns' names or, without names, `kept` their
    numbers in the source; `lines` are the lines of the rows in a text file, `parts` the names of
    the arrays when there are several, `image_shape` the height and width when a datum is a picture.
    """

    source: str
    columns: tuple[str, ...] | None = None
    kept: tuple[int, ...] | None = None
    lines: NDArray[np.int64] | None = None
    parts: tuple[str, ...] | None = None
    image_shape: tuple[int, int] | None = None

    def name(self, row: int | None = None, column: int | None = None, part: int = 0) -> str:
        """Name a value; `row` and `column` count from 0, columns over the flattened datum."""
        words = [self.source]
        if self.parts is not None:
            words.append(self.parts[part])
        if row is not None:
            line = None if self.lines is None else int(self.lines[row])
            words.append(f"row {row + 1} (index {row})" if line is None else f"line {line}")
        if column is not None:
            words.append(self.column(column))
        return ", ".join(words)

    def column(self, column: int) -> str:
        """Name a column of the flattened datum."""
        if self.columns is not None and column < len(self.columns):
            return f"column {self.columns[column]!r}"
        if self.image_shape is not None:
            return "pixel ({}, {})".format(*divmod(column, self.image_shape[1]))
        if self.kept is not None:
            column = self.kept[column]
        return f"column {column + 1} (index {column})"


def check_shape(array: Array, place: SourceLocation, part: int = 0) -> None:
    """Refuse what cannot be rows of numbers, from its type and shape alone.

    Raises:
        ValueError: for text, objects, dates, records, complex numbers, 0-d and empty arrays.
    """
    where = place.name(part=part)
    remedies = {
        "O": "holds Python objects (mixed types or rows of unequal length). "
        "Convert it with array.astype(float)",
        "U": "holds text. Give numbers, or name the text column in labels=",
        "S": "holds text. Give numbers, or name the text column in labels=",
        "M": "holds dates. Turn them into numbers, for instance days since the first",
        "m": "holds time differences. Divide them by a unit first",
        "c": "holds complex numbers. Give real and imaginary part as columns of their own",
        "V": "holds records with named fields. Stack its fields into a plain array",
    }
    if array.dtype.kind in remedies:
        raise ValueError(f"{where} {remedies[array.dtype.kind]}.")
    _check_extent(array.shape, where)


def _check_extent(shape: Sequence[int], where: str) -> None:
    if len(shape) == 0:
        raise ValueError(f"{where} is a single number (0-d). Data need a dimension of rows.")
    if shape[0] == 0:
        raise ValueError(f"{where} has no rows. Check what wrote it; a fit needs at least one.")
    if 0 in shape:
        raise ValueError(f"{where} has shape {tuple(shape)}: rows without a single value in them.")


def from_array(
    array: Array,
    place: SourceLocation,
    part: int = 0,
    rows: Array | None = None,
    missing: str = "error",
) -> Tensor:
    """Turn numbers (N, ...) into a tensor (N, ...) of torch's default type.

    `rows` (N,) are the rows' numbers in the source, when the array is a selection of them.

    Raises:
        ValueError: at the first missing value (unless `missing="keep"`), infinity, or number too
            large for the type.
    """
    check_shape(array, place, part)
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.float64), np.nan)
    dtype = torch.get_default_dtype()
    with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is found below
        numbers = array.astype(str(dtype).removeprefix("torch."), copy=False)
    _check_finite(numbers, array, place, part, rows, missing)
    if not numbers.flags.writeable or any(stride < 0 for stride in numbers.strides):
        numbers = numbers.copy()
    return torch.from_numpy(np.ascontiguousarray(numbers))


def from_tensor(
    tensor: Tensor,
    place: SourceLocation,
    part: int = 0,
    rows: Array | None = None,
    missing: str = "error",
) -> Tensor:
    """The same for a torch tensor: floats become the default type, integers stay as they are.

    Raises:
        ValueError: as `from_array`.
    """
    where = place.name(part=part)
    if tensor.layout != torch.strided:
        raise ValueError(f"{where} is a sparse tensor. Give tensor.to_dense().")
    if tensor.is_complex():
        raise ValueError(f"{where} holds complex numbers. Give torch.view_as_real(tensor).")
    _check_extent(tensor.shape, where)
    if not tensor.is_floating_point():
        return tensor
    numbers = tensor.detach().to(torch.get_default_dtype())
    if not bool(torch.isfinite(numbers).all()):
        found, given = numbers.double().cpu().numpy(), tensor.detach().double().cpu().numpy()
        _check_finite(found, given, place, part, rows, missing)
    return numbers


def _check_finite(
    numbers: Array, given: Array, place: SourceLocation, part: int, rows: Array | None, missing: str
) -> None:
    """`numbers` are what the model would see, `given` what stood there."""
    finite = np.isfinite(numbers)
    if finite.all():
        return
    absent = np.isnan(numbers)
    if missing == "error" and absent.any():
        raise ValueError(
            f"{_first(absent, place, part, rows)}: the value is missing ({absent.sum()} in all). "
            "Fill it in or remove the row yourself, or load with missing='keep' for a model that "
            "masks NaN."
        )
    infinite = ~finite & ~absent
    if infinite.any():
        value = given[infinite].flat[0]
        what = f"is too large for {torch.get_default_dtype()}" if np.isfinite(value) else "is not"
        raise ValueError(
            f"{_first(infinite, place, part, rows)}: {value} {what}"
            f"{'' if np.isfinite(value) else ' a finite number'}. "
            "Correct the value or remove the row; logarithms of 0 are a common cause."
        )


def _first(bad: Array, place: SourceLocation, part: int, rows: Array | None) -> str:
    """Name the first true entry of `bad` (N, ...)."""
    flat = np.asarray(bad).reshape(len(bad), -1)  # (N, P)
    row, column = divmod(int(flat.argmax()), flat.shape[1])
    own = row if rows is None else int(rows[row])
    if bad.ndim > 2:  # a sequence, a picture: its own indices
        at = tuple(int(i) for i in np.unravel_index(column, bad.shape[1:]))
        return f"{place.name(own, None, part)}, at {at} of {bad.shape[1:]}"
    return place.name(own, column if bad.ndim > 1 else None, part)


def code_labels(values: Array, where: str) -> tuple[Tensor, list[str] | None]:
    """Class labels (N,) as codes 0..C-1 (N,) and the classes' names in sorted order.

    Labels that are real numbers and not whole (a position along a curve) stay numbers, without
    names.

    Raises:
        ValueError: for a missing label or labels that are not one per row.
    """
    if values.ndim != 1:
        raise ValueError(f"{where} has shape {values.shape}; labels need one value per row, (N,).")
    if values.dtype.kind == "O":
        gaps = np.array([value is None or value != value for value in values])
        values = values if gaps.any() else np.array([str(value) for value in values])
    elif values.dtype.kind == "f":
        gaps = np.isnan(values)
    else:
        gaps = values == "" if values.dtype.kind == "U" else np.zeros(len(values), bool)
    if gaps.any():
        raise ValueError(
            f"{where}: the label of row {gaps.argmax() + 1} (index {gaps.argmax()}) is missing "
            f"({gaps.sum()} in all). Fill it in, or load without labels=."
        )
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.round(values)):
            return torch.from_numpy(values).to(torch.get_default_dtype()), None
        values = values.astype(np.int64)
    names, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), [str(name) for name in names]


def pick_columns(
    names: Sequence[str] | None,
    count: int,
    columns: Columns,
    labels: str | int | None,
    source: str,
) -> tuple[list[int], int | None]:
    """Positions of the chosen columns (default: all but the labels) and of the labels' column.

    With `names` they are chosen by name, without by Python index.

    Raises:
        ValueError: for an unknown, repeated or doubly used column.
    """
    if isinstance(columns, str):
        raise ValueError(f"columns={columns!r} is one string; give a list: columns=[{columns!r}].")
    label = None if labels is None else find_column(names, count, labels, source)
    if columns is None:
        chosen = [position for position in range(count) if position != label]
    else:
        chosen = [find_column(names, count, column, source) for column in columns]
    if not chosen:
        raise ValueError(f"{source}: no column is left for the model. Name some in columns=.")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{source}: columns={list(columns or [])} names a column twice.")
    if label in chosen:
        raise ValueError(f"{source}: {labels!r} cannot be in columns= and be the labels too.")
    return chosen, label


def find_column(names: Sequence[str] | None, count: int, wanted: str | int, source: str) -> int:
    """Position of one column, by name where columns have names and by index where not."""
    if names is None:
        if isinstance(wanted, int) and 0 <= wanted < count:
            return wanted
        raise ValueError(
            f"{source} has {count} columns without names; {wanted!r} is not one of the numbers "
            f"0 to {count - 1}."
        )
    if wanted not in names:
        raise ValueError(f"{source} has no {wanted!r}; {suggest(str(wanted), names)}")
    return list(names).index(str(wanted))


def check_names(names: Sequence[str], source: str) -> None:
    """Refuse columns without a name or two of one name, which no one could tell apart."""
    for position, name in enumerate(names):
        if name == "":
            raise ValueError(
                f"{source}: column {position + 1} has no name. Name it; if it is an index that "
                "pandas wrote, write the file again with index=False."
            )
        first = list(names).index(name)
        if first < position:
            raise ValueError(
                f"{source}: columns {first + 1} and {position + 1} are both called {name!r}. "
                "Rename one of them."
            )


def suggest(wanted: str, known: Sequence[str]) -> str:
    """Say what was probably meant, or what there is."""
    near = difflib.get_close_matches(wanted, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"there are {shown}."
