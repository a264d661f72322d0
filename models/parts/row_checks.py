"""Checks of rows, and moments for initial values."""

import torch
from torch import Tensor


def check_complete(x: Tensor, name: str) -> None:
    """Reject rows `x` (N, P) with a missing value.

    Raises:
        ValueError: with the first one, and the remedy.
    """
    if (gaps := x.isnan()).any():
        row, column = gaps.nonzero()[0].tolist()
        raise ValueError(
            f"{name} takes complete rows, but row {row}, column {column} of x is missing "
            f"({int(gaps.sum())} such values in all). Leave those rows out, or fill them in."
        )


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (P,) of the values that are present, in doubles.

    Raises:
        ValueError: for a column without a value, or constant data.
    """
    x = x.detach().double()
    means = _column_means(x)
    variance = (x - means).square().nanmean(0)
    if not variance.any():
        raise ValueError(
            f"All {len(x)} rows are the same: there is no variance to model. Give other data."
        )
    return means, variance


def rounding_variance(x: Tensor) -> Tensor:
    """Variance (P,) due to the rounding of the columns of `x` (N, P), without NaN.

    Data are of single precision: each value is off by up to 6e-8 of itself.
    """
    return 1e-13 * x.square().nanmean(0)


def flat_column(column: int | None, variance: float) -> str:
    """Reason why a column (None: all of them) with this small variance cannot be modeled."""
    if column is None:
        return (
            f"the columns vary by no more than {variance:.1e} on average, less than the "
            "floor or the rounding of values of that size. Scale them, as (x - mean) / deviation."
        )
    if variance == 0:
        return f"column {column} is constant. Leave it out."
    return (
        f"column {column} varies by no more than {variance:.1e} over all rows, less than the "
        "floor or the rounding of values of that size. Scale it, as (x - mean) / deviation, or "
        "leave it out."
    )


def mean_imputed(x: Tensor) -> Tensor:
    """`x` (N, P) with column means in place of missing values, for initial values only.

    Raises:
        ValueError: for a column without a value.
    """
    if not x.isnan().any():
        return x
    return torch.where(x.isnan(), _column_means(x.detach().double()).to(x), x)


def _column_means(x: Tensor) -> Tensor:
    if (empty := x.isnan().all(0)).any():
        raise ValueError(
            f"Column {int(empty.nonzero()[0])} has no value in {len(x)} rows. Leave it out."
        )
    return x.nanmean(0)
