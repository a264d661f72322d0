"""Weights and exposures of rows."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.messages import did_you_mean

if TYPE_CHECKING:
    from ppl_lvm.data.load import Data


def row_weights(weights: Any, num_rows: int, name: str = "weights") -> Tensor:
    """Validated weights (N,), in double precision.

    Raises:
        ValueError: wrong length, a negative or non-finite weight, or no positive one.
    """
    values = _per_row(weights, num_rows, name, "weight")
    _refuse(~(values.isfinite() & (values >= 0)), values, name, "weight", "finite and 0 or more")
    if not values.any():
        raise ValueError(f"{name}: all weights are 0. Give at least one row a positive weight.")
    return values


def repeat_rows(data: "Data", what: str) -> "Data":
    """The rows without weights, each as often as its weight says; as they are without weights.

    Raises:
        ValueError: a weight is no whole number; `what` needs repeated rows.
    """
    if data.weights is None:
        return data
    counts = data.weights.round()
    if not torch.equal(counts, data.weights):
        raise ValueError(
            f"weights: {what} repeats rows as often as their weights say, and "
            f"{float(data.weights[counts != data.weights][0]):g} is no whole number. Use whole "
            "numbers; the bounds and log evidence of any weights are in run.results."
        )
    index = torch.arange(len(data)).repeat_interleave(counts.long())
    return replace(data.subset(index), weights=None)


def row_exposure(exposure: Any, num_rows: int) -> Tensor:
    """Validated exposures (N,), in the default floating-point type.

    Raises:
        ValueError: wrong length, or an exposure that is not positive and finite.
    """
    values = _per_row(exposure, num_rows, "exposure", "exposure")
    _refuse(~(values.isfinite() & (values > 0)), values, "exposure", "exposure", "above 0")
    return values.to(torch.get_default_dtype())


def _per_row(values: Any, num_rows: int, name: str, word: str) -> Tensor:
    try:
        numbers = values.detach().cpu() if isinstance(values, Tensor) else np.asarray(values)
        if "complex" in str(numbers.dtype):
            raise TypeError
        result = torch.as_tensor(numbers, dtype=torch.float64).clone()
    except (TypeError, ValueError, NotImplementedError):  # text, dates, ragged lists; no values
        raise ValueError(
            f"{name}: a {type(values).__name__} without one number per row. Give an array "
            f"({num_rows},) of numbers."
        ) from None
    if result.shape not in ((num_rows,), (num_rows, 1)):
        raise ValueError(
            f"{name}: shape {tuple(result.shape)} for {num_rows} rows. Give one {word} per row."
        )
    return result.reshape(-1)


def _refuse(invalid: Tensor, values: Tensor, name: str, word: str, rule: str) -> None:
    if invalid.any():
        row = int(invalid.nonzero()[0, 0])
        raise ValueError(
            f"{name}: row {row} has the {word} {float(values[row]):g}. {word.capitalize()}s must "
            f"be {rule}."
        )


def other_columns(
    names: list[str] | None, weights: str, columns: Any, source: str, what: str = "weights"
) -> tuple[Any, int]:
    """The columns for the model, and the position of that with the weights (or exposures).

    Raises:
        ValueError: the table has no such column.
    """
    if names is None or weights not in names:
        hint = did_you_mean(weights, names or ())
        raise ValueError(
            f"{source}: no column {weights!r} with {what}.{hint} Name a column, or pass an array."
        )
    others = [name for name in names if name != weights] if columns is None else columns
    return others, names.index(weights)
