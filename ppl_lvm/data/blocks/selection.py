"""Sorted subsets of rows in one bit each."""

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.types import Array

GROUP = 256  # rows whose count is stored


class RowSelection:
    """Row numbers in ascending order, of N rows, in N / 8 bytes.

    Args:
        bits: one bit a row, packed by `numpy.packbits`, padded to whole groups.
    """

    def __init__(self, bits: Array) -> None:
        self._groups = bits.reshape(-1, GROUP // 8)
        counts = np.bitwise_count(self._groups).sum(1, dtype=np.int64)
        self._ranks = np.concatenate([[0], np.cumsum(counts)])  # rows before each group

    def __len__(self) -> int:
        return int(self._ranks[-1])

    def __getitem__(self, index: Tensor) -> Tensor:
        """Row numbers at the positions `index` (n,)."""
        positions = index.cpu().numpy() % max(1, len(self))
        group = np.searchsorted(self._ranks, positions, side="right") - 1
        present, inverse = np.unique(group, return_inverse=True)
        bits = np.unpackbits(self._groups[present], axis=1)
        owner, offset = np.nonzero(bits)
        first = np.searchsorted(owner, np.arange(len(present)))
        place = first[inverse] + positions - self._ranks[group]
        return torch.from_numpy(group * GROUP + offset[place])

    def rank(self, rows: Array) -> Array:
        """Number of selected rows before each of `rows` (n,)."""
        group, place = np.divmod(rows, GROUP)
        inside = group < len(self._groups)
        bits = np.unpackbits(self._groups[np.where(inside, group, 0)], axis=1)
        before = (bits * (np.arange(GROUP) < place[:, None])).sum(1, dtype=np.int64)
        return self._ranks[np.minimum(group, len(self._groups))] + before * inside

    def numpy(self) -> Array:
        """The bits, for a digest."""
        return self._groups


def split(sizes: Array, held_out: int, seed: int) -> tuple[RowSelection, RowSelection]:
    """The rows of a random split: all but `held_out`, and these, each subset equally likely.

    The held-out rows of each block are counted by a multivariate hypergeometric draw, then chosen.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multivariate_hypergeometric(sizes, held_out, method="marginals")
    total = int(sizes.sum())
    held_bits = np.zeros(-(-total // GROUP) * GROUP // 8, np.uint8)
    train_bits = held_bits.copy()
    start = 0
    rest = np.zeros(0, bool)  # rows of a byte that the next block completes
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        chosen = np.zeros(size, bool)
        chosen[rng.choice(size, count, replace=False, shuffle=False)] = True
        chosen = np.concatenate([rest, chosen])
        whole = len(chosen) // 8 * 8
        place = slice(start // 8, (start + whole) // 8)
        held_bits[place] = np.packbits(chosen[:whole])
        train_bits[place] = np.packbits(~chosen[:whole])
        start, rest = start + whole, chosen[whole:]
    if len(rest):
        held_bits[start // 8] = np.packbits(rest)[0]
        train_bits[start // 8] = np.packbits(~rest)[0]
    return RowSelection(train_bits), RowSelection(held_bits)
