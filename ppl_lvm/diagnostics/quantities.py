"""Test quantities of predictive checks: functions of data sets."""

import math

import torch
from torch import Tensor

from ppl_lvm.diagnostics.base import Quantity

MAX_COLUMNS = 512  # that have test quantities
MAX_EIGEN = 64  # columns up to which the largest eigenvalue is a test quantity


def standard_quantities(columns: int, steps: int = 1) -> dict[str, Quantity]:
    """The standard test quantities: functions of data sets (R, N, P) to (R, C), or (R,).

    The first ones are of each column (of a sequence: over rows and steps), the others of all
    columns together, to be called on standardized columns. Missing values (NaN) are the same in all
    data sets. Of sequences P = steps × columns per step; their lag-1 autocorrelation is a quantity
    too, of values and of squared deviations.
    """
    by_column: dict[str, Quantity] = {
        "mean": lambda x: x.nanmean(1),
        "sd": _sd,
        "smallest": lambda x: torch.where(x.isnan(), math.inf, x).amin(1),
        "largest": lambda x: torch.where(x.isnan(), -math.inf, x).amax(1),
    }
    if columns == 1:
        by_column["skewness"] = _skewness
    quantities: dict[str, Quantity] = {n: _of_columns(T, steps) for n, T in by_column.items()}
    if columns > 1:
        quantities["sd of row means"] = lambda x: _sd(x.nanmean(2))
    if 1 < columns <= MAX_EIGEN:
        quantities["largest eigenvalue"] = _largest_eigenvalue
    if steps > 1:
        quantities["lag-1 autocorrelation"] = lambda x: _lag_1_autocorrelation(x, steps, 1)
        quantities["lag-1 autocorrelation of squares"] = lambda x: _lag_1_autocorrelation(
            x, steps, 2
        )
    return quantities


def _of_columns(T: Quantity, steps: int) -> Quantity:
    """T of the columns of a step, at most `MAX_COLUMNS` of them, evenly spaced."""

    def of_columns(x: Tensor) -> Tensor:
        x = x.unflatten(2, (steps, -1)).flatten(1, 2)
        return T(x[..., column_index(x.shape[2])])

    return of_columns


def column_index(columns: int) -> Tensor:
    """The columns that have test quantities."""
    return torch.linspace(0, columns - 1, min(columns, MAX_COLUMNS)).round().long()


def _sd(x: Tensor) -> Tensor:
    squares = (x - x.nanmean(1, keepdim=True)).square()
    return (squares.nansum(1) / ((~x.isnan()).sum(1) - 1)).sqrt()


def _skewness(x: Tensor) -> Tensor:
    """Skewness; 0 of equal values."""
    centered = x - x.nanmean(1, keepdim=True)
    cube, spread = (centered**3).nanmean(1), (centered**2).nanmean(1) ** 1.5
    return torch.where(spread > 0, cube / spread, 0.0)


def _largest_eigenvalue(x: Tensor) -> Tensor:
    """Largest eigenvalue of the covariance, each entry from the rows that have both columns."""
    observed = (~x[0].isnan()).to(x)  # (N, P)
    centered = (x - x.nanmean(1, keepdim=True)).nan_to_num(0.0)
    covariance = centered.mT @ centered / (observed.mT @ observed).clamp(min=1)
    return torch.linalg.eigvalsh(covariance)[:, -1]


def _lag_1_autocorrelation(x: Tensor, steps: int, power: int) -> Tensor:
    """Lag-1 autocorrelation of each column's deviations to a power, averaged over columns."""
    x = x.unflatten(2, (steps, -1))  # (R, N, T, P)
    d = (x - x.nanmean((1, 2), keepdim=True)) ** power
    observed = ~(d[:, :, 1:] + d[:, :, :-1]).isnan()
    count = observed.sum((1, 2), keepdim=True).clamp(min=1)
    now, later = (t.where(observed, 0.0) for t in (d[:, :, :-1], d[:, :, 1:]))
    now, later = (
        (t - t.sum((1, 2), keepdim=True) / count).where(observed, 0.0) for t in (now, later)
    )
    spread = (now.square().sum((1, 2)) * later.square().sum((1, 2))).sqrt()  # (R, P)
    tiny = torch.finfo(x.dtype).tiny
    return ((now * later).sum((1, 2)) / spread.clamp(min=tiny)).mean(-1)


def location_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd (1, 1, P) of the columns of x (1, N, P); 0 and 1 of a missing or constant one."""
    sd = _sd(x)[:, None]
    return x.nanmean(1, keepdim=True).nan_to_num(0.0), sd.where(sd > 0, 1.0)
