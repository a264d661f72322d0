"""Clusters of principal components that an autoencoder starts from."""

import torch
from torch import Tensor

from ppl_lvm.models.parts.decoders.decoder import Decoder

# Steps, rows and rate of the decoder's training: enough to separate clusters, not to fit noise.
_LESSONS, _LESSON_ROWS, _LESSON_RATE = 300, 256, 3e-3


# Below this share of the leading deviation, rows of single precision vary by rounding alone.
_ROUNDING = 3e-7


# Smallest standard deviation of a cluster, in units of the initial principal components.
LEAST_SCALE = 0.05


def principal_codes(x: Tensor, latent: int) -> Tensor:
    """The D leading principal components of the rows `x` (N, P), each of variance 1: (N, D).

    Raises:
        ValueError: for rows that vary in fewer directions.
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


def train_decoder(decoder: Decoder, z: Tensor, x: Tensor) -> None:
    """Train the decoder to map codes `z` (N, D) to rows `x` (N, P)."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=_LESSON_RATE)
    with torch.enable_grad():
        for _ in range(_LESSONS):
            rows = torch.randint(len(x), (min(len(x), _LESSON_ROWS),))
            loss = -decoder(z[rows]).log_prob(x[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
