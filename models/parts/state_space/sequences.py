"""Checks of sequences, and their observed steps."""

import torch
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
            f"{name} takes sequences of floating-point numbers (NaN is missing), got {x.dtype}. "
            "Pass x.float()."
        )
    return as_sequences(x).shape[2]


def check_sequence_shape(x: Tensor, observed: int | None, name: str) -> None:
    """Reject a tensor that is not sequences (N, T, P), of any dtype; arguments as above."""
    if x.dim() != 3 or observed not in (None, x.shape[2]):
        raise ValueError(
            f"{name} takes sequences (N, T, {observed or 'P'}), got {tuple(x.shape)}. Save them "
            "as one .npy array, short ones padded with NaN."
        )


def check_several_steps(x: Tensor, name: str) -> None:
    """Reject sequences `x` (N, T, P) that all end after their first step, to initialize from.

    Such sequences say nothing about transitions. Usually they are the steps of one sequence.

    Raises:
        ValueError: with the remedy.
    """
    N = len(x)
    if not active_steps(x)[:, 1:].any():
        sequences = "the only sequence has" if N == 1 else f"all {N} sequences have"
        raise ValueError(
            f"{name}: {sequences} one step, so the data say nothing about transitions. If the "
            "rows are the steps of one sequence, pass x[None] of shape (1, T, P), or "
            "load_data(x, one_sequence=True), on the command line --one-sequence."
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


def segment_features(x: Tensor, length: int) -> Tensor:
    """Mean and log standard deviation of each column in segments of steps, for every step.

    Args:
        x: sequences (N, T, P) without NaN.
        length: steps of a segment.

    Returns:
        In units of the columns' standard deviations: (N T, 2 P).
    """
    x = x.double()
    scale = x.flatten(0, 1).std(0, correction=0).clamp(min=1e-300)
    features = []
    for part in x.split(length, 1):
        mean, spread = part.mean(1, keepdim=True), part.std(1, correction=0, keepdim=True)
        feature = torch.cat([mean / scale, (spread / scale + 1e-3).log()], -1)
        features.append(feature.expand(-1, part.shape[1], -1))
    return torch.cat(features, 1).flatten(0, 1)
