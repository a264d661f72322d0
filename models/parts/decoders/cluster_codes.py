"""Clusters of principal components that an auto-encoder starts from."""

import torch
from torch import Tensor

from ppl_lvm.models.parts.decoders.decoder import Decoder

# The decoder's lessons before training: enough to tell clusters apart, not to learn noise.
_LESSONS, _LESSON_ROWS, _LESSON_RATE = 300, 256, 3e-3


# Below so much of the leading deviation, rows of single precision vary by rounding alone.
_ROUNDING = 3e-7


# The least standard deviation of a cluster, in units of the principal components at the start.
LEAST_SCALE = 0.05


def principal_codes(x: Tensor, latent: int) -> Tensor:
    """The D leading principal components of the rows `x` (N, P), each of variance 1: (N, D).

    Raises:
        ValueError: for rows that do not vary in so many directions.
    """
    if latent > min(x.shape):
        raise ValueError(
            f"latent={latent} codes cannot start from the principal components of "
            f"{x.shape[0]} rows and {x.shape[1]} columns. Use latent={min(x.shape)} or fewer."
        )
    x = x.double()
    centered = x - x.mean(0)
    _, singular, V = torch.linalg.svd(centered, full_matrices=False)
    directions = int((singular > _ROUNDING * singular[0]).sum())
    if latent > directions:
        remedy = f"Use latent={directions} or fewer." if directions else "Give other data."
        raise ValueError(
            f"latent={latent} codes cannot start from the principal components of rows that vary "
            f"in no more than {directions} directions. {remedy}"
        )
    return centered @ V[:latent].mT / singular[:latent] * len(x) ** 0.5


def teach(decoder: Decoder, z: Tensor, x: Tensor) -> None:
    """Let the decoder learn the way from codes `z` (N, D) to rows `x` (N, P)."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=_LESSON_RATE)
    with torch.enable_grad():
        for _ in range(_LESSONS):
            rows = torch.randint(len(x), (min(len(x), _LESSON_ROWS),))
            loss = -decoder(z[rows]).log_prob(x[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
