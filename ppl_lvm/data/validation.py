"""Validation and conversion of external values to tensors.

A model sees floating-point tensors of torch's default type. Integers and booleans from arrays,
data frames and files are converted to floats: every discrete likelihood of Pyro takes floats
(`Bernoulli` takes nothing else), and a program that indexes with a class writes `y.long()`. Torch
tensors of integers stay integers, since their type was chosen in torch.

Messages name rows by the line in a text file (the header is line 1), elsewhere by a number from 1
with Python's index beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_lvm.core.messages import did_you_mean
from ppl_lvm.core.types import Array

Columns = Sequence[str] | Sequence[int] | None

Missing = Literal["error", "keep"]


@dataclass(frozen=True)
class SourceLocation:
    """Location of values in their source, for messages.

    Attributes:
        source: the file or data set.
        columns: names of the columns, or None.
        column_indices: indices of nameless columns in the source, where some were chosen.
        lines: line of each row in a text file.
        parts: names of the arrays where there are several.
        image_shape: height and width of a row that is a picture.
    """

    source: str
    columns: tuple[str, ...] | None = None
    column_indices: tuple[int, ...] | None = None
    lines: NDArray[np.int64] | None = None
    parts: tuple[str, ...] | None = None
    image_shape: tuple[int, int] | None = None

    def name(self, row: int | None = None, column: int | None = None, part: int = 0) -> str:
        """Name of a value; `row` and `column` count from 0, columns over the flattened row."""
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
        """Name of a column of the flattened row."""
        if self.columns is not None and column < len(self.columns):
            return f"column {self.columns[column]!r}"
        if self.image_shape is not None:
            return "pixel ({}, {})".format(*divmod(column, self.image_shape[1]))
        if self.column_indices is not None:
            column = self.column_indices[column]
        return f"column {column + 1} (index {column})"


def check_shape(array: Array, location: SourceLocation, part: int = 0) -> None:
    """Reject arrays whose type or shape cannot be rows of numbers.

    Raises:
        ValueError: for text, objects, dates, records, complex numbers, 0-d and empty arrays.
    """
    where = location.name(part=part)
    remedies = {
        "O": "holds Python objects (mixed types or rows of unequal length). "
        "Convert it with array.astype(float)",
        "U": "holds text. Give numbers, or name the text column in labels=",
        "S": "holds text. Give numbers, or name the text column in labels=",
        "M": "holds dates. Convert them to numbers, for instance days since the first",
        "m": "holds time differences. Divide them by a unit first",
        "c": "holds complex numbers. Give real and imaginary parts as separate columns",
        "V": "holds records with named fields. Stack its fields into a plain array",
    }
    if array.dtype.kind in remedies:
        raise ValueError(f"{where} {remedies[array.dtype.kind]}.")
    _check_extent(array.shape, where)


def _check_extent(shape: Sequence[int], where: str) -> None:
    if len(shape) == 0:
        raise ValueError(f"{where} is a single number (0-d). Data need a dimension of rows.")
    if shape[0] == 0:
        raise ValueError(
            f"{where} has no rows. Check the program that wrote it; a fit needs one row or more."
        )
    if 0 in shape:
        raise ValueError(
            f"{where} has shape {tuple(shape)}: its rows have no values. Give one column or more."
        )


def from_array(
    array: Array,
    location: SourceLocation,
    part: int = 0,
    rows: Array | range | None = None,
    missing: str = "error",
) -> Tensor:
    """Convert numbers (N, ...) to a tensor (N, ...) of torch's default type.

    `rows` (N,) are the indices of the rows in the source, where the array is a subset.

    Raises:
        ValueError: at the first missing value (unless `missing="keep"`), infinity, or number too
            large for the type.
    """
    check_shape(array, location, part)
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.float64), np.nan)
    dtype = torch.get_default_dtype()
    with np.errstate(over="ignore"):  # overflow gives infinities, which are rejected below
        numbers = array.astype(str(dtype).removeprefix("torch."), copy=False)
    _check_finite(numbers, array, location, part, rows, missing)
    if not numbers.flags.writeable or any(stride < 0 for stride in numbers.strides):
        numbers = numbers.copy()
    return torch.from_numpy(np.ascontiguousarray(numbers))


def from_tensor(
    tensor: Tensor,
    location: SourceLocation,
    part: int = 0,
    rows: Array | None = None,
    missing: str = "error",
) -> Tensor:
    """Convert a float tensor to the default type; integers stay integers.

    Raises:
        ValueError: like `from_array`.
    """
    where = location.name(part=part)
    if tensor.layout != torch.strided:
        raise ValueError(f"{where} is a sparse tensor. Give tensor.to_dense().")
    if tensor.is_meta and type(tensor) in (Tensor, nn.Parameter):
        raise ValueError(
            f"{where} is on the device 'meta', without values. Give a tensor of the CPU."
        )
    if tensor.is_complex():
        raise ValueError(f"{where} holds complex numbers. Give torch.view_as_real(tensor).")
    _check_extent(tensor.shape, where)
    if not tensor.is_floating_point():
        return tensor
    numbers = tensor.detach().to(torch.get_default_dtype())
    if not bool(torch.isfinite(numbers).all()):
        original = tensor.detach().double().cpu().numpy()
        _check_finite(numbers.double().cpu().numpy(), original, location, part, rows, missing)
    return numbers


def _check_finite(
    numbers: Array,
    original: Array,
    location: SourceLocation,
    part: int,
    rows: Array | range | None,
    missing: str,
) -> None:
    """Reject missing and infinite values in `numbers`, converted from `original`."""
    finite = np.isfinite(numbers)
    if finite.all():
        return
    absent = np.isnan(numbers)
    if missing == "error" and absent.any():
        raise ValueError(
            f"{_first(absent, location, part, rows)}: the value is missing ({absent.sum()} in "
            "all). Fill it in, remove the row, or load with missing='keep' for a model that "
            "replaces NaN and masks it (ppl_lvm.authoring.without_missing); a mask alone has "
            "gradients that are NaN."
        )
    infinite = ~finite & ~absent
    if infinite.any():
        value = original[infinite].flat[0]
        overflow = f"is too large for {torch.get_default_dtype()}"
        fault = overflow if np.isfinite(value) else "is not a finite number"
        raise ValueError(
            f"{_first(infinite, location, part, rows)}: {value} {fault}. "
            "Correct the value or remove the row; logarithms of 0 are a common cause."
        )


def _first(bad: Array, location: SourceLocation, part: int, rows: Array | range | None) -> str:
    """Name of the first true entry of `bad` (N, ...)."""
    flat = np.asarray(bad).reshape(len(bad), -1)  # (N, P)
    row, column = divmod(int(flat.argmax()), flat.shape[1])
    source_row = row if rows is None else int(rows[row])
    if bad.ndim > 2:  # a sequence or a picture
        index = tuple(int(i) for i in np.unravel_index(column, bad.shape[1:]))
        return f"{location.name(source_row, None, part)}, at {index} of {bad.shape[1:]}"
    return location.name(source_row, column if bad.ndim > 1 else None, part)


def code_labels(values: Array, where: str) -> tuple[Tensor, list[str] | None]:
    """Class labels (N,) as codes 0..C-1 (N,), and the class names in sorted order.

    Labels with fractions (a position along a curve) stay numbers without names.

    Raises:
        ValueError: for a missing label or labels that are not one per row.
    """
    if values.ndim != 1:
        raise ValueError(f"{where} has shape {values.shape}; labels need one value per row, (N,).")
    if values.dtype.kind in "cV":
        check_shape(values, SourceLocation(where))
    if values.dtype.kind == "S":
        values = np.char.decode(values, "latin-1")
    if values.dtype.kind == "O":
        gaps = np.array([_is_gap(value) for value in values])
        values = values if gaps.any() else _of_one_type(values, where)
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
        if np.isinf(values).any():
            n = int(np.isinf(values).argmax())
            raise ValueError(
                f"{where}: the label of row {n + 1} (index {n}) is infinite. Correct it, or load "
                "without labels=."
            )
        if np.abs(values).max() >= 2.0**53 or not np.array_equal(values, np.round(values)):
            return torch.from_numpy(values).to(torch.get_default_dtype()), None
        values = values.astype(np.int64)
    names, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), [str(name) for name in names]


def _is_gap(value: Any) -> bool:
    """True for None, NaN and pandas' NA and NaT, which differ from themselves or do not say."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # NA: ambiguous; an array: no label
        return not hasattr(value, "shape")


def _of_one_type(values: Array, where: str) -> Array:
    """Labels (N,) of Python objects as an array of texts or of numbers.

    Raises:
        ValueError: two labels are of different types, so that 1 and "1" could become equal.
    """
    kinds = (str, bool | np.bool_, int | float | np.number)
    first = next((kind for kind in kinds if isinstance(values[0], kind)), type(values[0]))
    for n, value in enumerate(values):
        if not isinstance(value, first) or (first is kinds[2] and isinstance(value, bool)):
            raise ValueError(
                f"{where}: the label of row {n + 1} (index {n}) is a {type(value).__name__}, that "
                f"of row 1 a {type(values[0]).__name__}. Give labels of one type."
            )
    if first is kinds[2]:
        return np.array([float(value) for value in values])
    return np.array([str(value) for value in values])


def pick_columns(
    names: Sequence[str] | None, count: int, columns: Columns, labels: str | int | None, source: str
) -> tuple[list[int], int | None]:
    """Indices of the chosen columns (default: all but the labels) and of the label column.

    Columns are chosen by name if there are `names`, else by Python index.

    Raises:
        ValueError: for an unknown or repeated column, or one that is also the label.
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


def find_column(names: Sequence[str] | None, count: int, column: str | int, source: str) -> int:
    """Index of one column, by name if columns have names, else by index."""
    if names is None:
        if isinstance(column, int) and 0 <= column < count:
            return column
        raise ValueError(
            f"{source} has {count} columns without names; {column!r} is not an index from 0 to "
            f"{count - 1}. Pass such an index."
        )
    if column not in names:
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        hint = did_you_mean(str(column), names) or f" Available: {shown}."
        raise ValueError(f"{source} has no {column!r}.{hint}")
    return list(names).index(str(column))


def check_names(names: Sequence[str], source: str) -> None:
    """Reject columns without a name and duplicate names."""
    for position, name in enumerate(names):
        if name == "":
            raise ValueError(
                f"{source}: column {position + 1} has no name. Name it; if it is an index written "
                "by pandas, write the file again with index=False."
            )
        first = list(names).index(name)
        if first < position:
            raise ValueError(
                f"{source}: columns {first + 1} and {position + 1} are both called {name!r}. "
                "Rename one of them."
            )


def held_out_rows(held_out: int | float, total: int, option: str) -> int:
    """Number of held-out rows, of `total`, that a number or a fraction means."""
    size = round(held_out * total) if isinstance(held_out, float) else int(held_out)
    if not 0 < size < total:
        raise ValueError(
            f"{option}={held_out} of {total} rows holds out {size}. Leave at least one row on "
            "each side."
        )
    return size


def iterable_fault(what: str) -> str:
    """The remedy for a source without numbered rows."""
    return (
        f"{what} is iterable only: its rows cannot be counted or indexed. Wrap it as a map-style "
        "Dataset with __len__ and __getitem__, or write it to an .npy file, which is "
        "memory-mapped."
    )


def list_fault(source: list[object]) -> str:
    """The remedy for a list: sequences of unequal length are padded, others become an array."""
    items: list[Any] = [i for i in source if isinstance(i, (list, tuple, np.ndarray, Tensor))]
    lengths = [len(i) for i in items if isinstance(i, (list, tuple)) or i.ndim]
    if len(lengths) == len(source) and len(set(lengths)) > 1:
        return (
            "the list holds sequences of unequal length, which are no array. Pad them with NaN to "
            "(N, T, P); load with missing='keep': torch.nn.utils.rnn.pad_sequence(tensors, "
            "batch_first=True, padding_value=float('nan'))"
        )
    return "the list cannot be loaded. Pass np.array(rows), or several arrays as a tuple (x, y)"
