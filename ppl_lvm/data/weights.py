"""Weights of rows."""

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
    try:
        values = torch.as_tensor(np.asarray(weights), dtype=torch.float64).clone()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}. Give one number per row.") from error
    if values.shape not in ((num_rows,), (num_rows, 1)):
        raise ValueError(
            f"{name}: shape {tuple(values.shape)} for {num_rows} rows. Give one weight per row."
        )
    values = values.reshape(-1)
    invalid = ~(values.isfinite() & (values >= 0))
    if invalid.any():
        row = int(invalid.nonzero()[0, 0])
        raise ValueError(
            f"{name}: row {row} has the weight {float(values[row]):g}. Weights must be finite and "
            "0 or more."
        )
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


def other_columns(
    names: list[str] | None, weights: str, columns: Any, source: str
) -> tuple[Any, int]:
    """The columns for the model, and the position of that with the weights.

    Raises:
        ValueError: the table has no such column.
    """
    if names is None or weights not in names:
        hint = did_you_mean(weights, names or ())
        raise ValueError(
            f"{source}: no column {weights!r} with weights.{hint} Name a column, or pass an array."
        )
    others = [name for name in names if name != weights] if columns is None else columns
    return others, names.index(weights)
