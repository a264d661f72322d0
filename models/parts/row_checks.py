"""What every model of rows of numbers asks of its data, and what a start takes from them."""

import torch
from torch import Tensor


def check_complete(x: Tensor, name: str) -> None:
    """Refuse rows `x` (N, P) with a value that is missing.

    Raises:
        ValueError: naming the first, and the remedy.
    """
    if (gaps := x.isnan()).any():
        row, column = gaps.nonzero()[0].tolist()
        raise ValueError(
            f"{name} takes complete rows, but row {row}, column {column} of x is missing "
            f"({int(gaps.sum())} such values in all). Leave those rows out, or fill them in."
        )


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (P,) of the values that are there, in doubles.

    Raises:
        ValueError: for a column without a value, or data that never changes.
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
    """The variance (P,) that rounding makes of the columns of `x` (N, P); NaN is left out.

    Data are of single precision: each value is off by up to 6e-8 of itself.
    """
    return 1e-13 * x.square().nanmean(0)


def flat_column(column: int | None, variance: float) -> str:
    """Why a column (None: all of them) that varies so little over all rows cannot be modelled."""
    if column is None:
        return (
            f"the columns vary by no more than {variance:.1e} on average, which the floor or the "
            "rounding of values of that size hides. Scale them, as (x - mean) / deviation."
        )
    if variance == 0:
        return f"column {column} never changes. Leave it out."
    return (
        f"column {column} varies by no more than {variance:.1e} over all rows, which the floor or "
        "the rounding of values of that size hides. Scale it, as (x - mean) / deviation, or leave "
        "it out."
    )


def mean_imputed(x: Tensor) -> Tensor:
    """`x` (N, P) with its columns' means where a value is missing: to start from, not to fit.

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
