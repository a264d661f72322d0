"""What every model of sequences asks of its data, and what a start takes from them."""

from torch import Tensor


def as_sequences(x: Tensor, observed: int | None, name: str) -> Tensor:
    """Sequences `x` as (N, T, P); (N, T) are such of one column.

    Raises:
        ValueError: what came, and the remedy.
    """
    width = x.shape[2] if x.dim() == 3 else 1
    if x.dim() not in (2, 3) or (observed is not None and width != observed):
        raise ValueError(
            f"{name} takes sequences (N, T, {observed or 'P'}), or (N, T) for one column, got "
            f"{tuple(x.shape)}. Save them as one .npy array, short ones filled up with NaN."
        )
    if not x.is_floating_point():
        raise ValueError(
            f"{name} takes floating-point numbers (NaN is missing), got {x.dtype}. Pass x.float()."
        )
    return x if x.dim() == 3 else x.unsqueeze(-1)


def seen_steps(x: Tensor) -> Tensor:
    """The steps of sequences `x` (N, T, P) at which anything was seen: rows (M, P).

    Raises:
        ValueError: nothing was.
    """
    rows = x.detach().flatten(0, 1)
    rows = rows[~rows.isnan().all(1)]
    if not len(rows):
        raise ValueError(f"None of {len(x)} sequences has a value: all are NaN. Give other data.")
    return rows


def lasting(x: Tensor) -> Tensor:
    """Whether anything is seen at a step of `x` (N, T, P) or after it: (N, T)."""
    later: Tensor = (~x.isnan()).any(-1).flip(1).cumsum(1).flip(1)
    return later > 0
