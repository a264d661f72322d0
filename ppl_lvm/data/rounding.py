"""Values that the model's floating-point type rounds.

Single precision has 24 bits: whole numbers above 2²⁴ (Unix times, identifiers) and values that
differ by less than 6e-8 of their size become equal. Loading says so, since a later message about
equal values would not lead there.
"""

import warnings

import numpy as np
from torch import Tensor

from ppl_lvm.core.types import Array
from ppl_lvm.data.validation import SourceLocation

COMPARED_ROWS = 100_000  # whose distinct values are counted
VISIBLE = 1e-4  # of a column's standard deviation: a larger error of rounding is a loss
MERGED = 0.01  # of the rows: more distinct values that become equal are a loss
NAMED_COLUMNS = 5
EXACT = 2.0**53  # whole numbers below are exact in double precision, in which files are read


def warn_of_rounding(
    original: Array | Tensor, converted: Tensor, location: SourceLocation, part: int = 0
) -> None:
    """Warn of columns that lose whole numbers or distinct values in the conversion."""
    if isinstance(original, Tensor):
        if original.dtype == converted.dtype:
            return
        original = original.detach().cpu().numpy()
    if original.dtype.kind not in "iuf" or original.dtype.itemsize <= 2 or original.ndim == 0:
        return
    before = np.ma.filled(original, 0) if isinstance(original, np.ma.MaskedArray) else original
    after = converted.detach().cpu().double().numpy()
    exact = np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    if exact and not (np.abs(after) >= EXACT).any():
        return
    before = before.reshape(-1, before.shape[1] if before.ndim == 2 else 1)
    after = after.reshape(before.shape)
    losses = []
    for k in range(before.shape[1]):
        loss = _loss(before[:, k], after[:, k])
        if loss:
            name = location.name(column=k if original.ndim == 2 else None, part=part)
            losses.append(f"{name}: {loss}")
    if not losses:
        return
    more = len(losses) - NAMED_COLUMNS
    listed = "; ".join(losses[:NAMED_COLUMNS]) + (f"; and {more} more columns" if more > 0 else "")
    warnings.warn(
        f"{listed}. {converted.dtype} rounds them. Subtract a constant or divide by a unit first, "
        "leave identifiers out, or load in double precision: "
        "torch.set_default_dtype(torch.float64).",
        stacklevel=2,
    )


def _loss(before: Array, after: Array) -> str:
    """Loss of a column (N,) by rounding, in words; empty without one."""
    present = np.isfinite(before) if before.dtype.kind == "f" else np.ones(len(before), bool)
    before, after = before[present], after[present]
    if not len(before):
        return ""
    whole = before.dtype.kind in "iu" or np.array_equal(before, np.round(before))
    if whole and np.abs(after).max() >= EXACT:
        return "whole numbers from 2⁵³ are not exact"
    if np.array_equal(before, after):
        return ""
    counted = before[:COMPARED_ROWS], after[:COMPARED_ROWS]
    distinct, left = (len(np.unique(values)) for values in counted)
    error = np.abs(after - before.astype(np.float64)).max()
    visible = error > VISIBLE * before.astype(np.float64).std()
    if left < distinct and (whole or visible or distinct - left > MERGED * len(before)):
        return f"{distinct} distinct values become {left}"
    return f"whole numbers change by up to {error:g}" if whole and error >= 0.5 else ""
