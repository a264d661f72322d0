"""Checks of sequences, and their observed steps."""

from torch import Tensor


def as_sequences(x: Tensor) -> Tensor:
    """Sequences `x` as (N, T, P); a tensor (N, T) holds sequences of one column."""
    return x if x.dim() == 3 else x.unsqueeze(-1)


def check_sequences(x: Tensor, observed: int | None, name: str) -> int:
    """Reject a tensor that is not sequences (N, T, P) or (N, T) of floating-point numbers.

    Args:
        observed: P, None if it is not known yet.
        name: of the model.

    Returns:
        P.

    Raises:
        ValueError: with the shape or dtype, and the remedy.
    """
    check_sequence_shape(x if x.dim() != 2 else x.unsqueeze(-1), observed, name)
    if not x.is_floating_point():
        raise ValueError(
            f"{name} takes floating-point numbers (NaN is missing), got {x.dtype}. Pass x.float()."
        )
    return as_sequences(x).shape[2]


def check_sequence_shape(x: Tensor, observed: int | None, name: str) -> None:
    """Reject a tensor that is not sequences (N, T, P), of any dtype; arguments as above."""
    if x.dim() != 3 or observed not in (None, x.shape[2]):
        raise ValueError(
            f"{name} takes sequences (N, T, {observed or 'P'}), got {tuple(x.shape)}. Save them "
            "as one .npy array, short ones padded with NaN."
        )


def seen_steps(x: Tensor) -> Tensor:
    """The observed steps of sequences `x` (N, T, P): rows (M, P).

    Raises:
        ValueError: for sequences without a value.
    """
    rows = x.detach().flatten(0, 1)
    rows = rows[~rows.isnan().all(1)]
    if not len(rows):
        raise ValueError(f"None of {len(x)} sequences has a value: all are NaN. Give other data.")
    return rows


def active_steps(x: Tensor) -> Tensor:
    """True up to the last observed step of `x` (N, T, P): (N, T)."""
    later: Tensor = (~x.isnan()).any(-1).flip(1).cumsum(1).flip(1)
    return later > 0
