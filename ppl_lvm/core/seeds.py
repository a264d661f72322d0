"""Random numbers of a diagnostic's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_lvm.core.rng import preserve_rng

# A person who simulates data under seed 0 and diagnoses under seed 0 would give both the same
# numbers, and the draws of q would be those that made the data.
DISTANT = 0x5EED_0D1A6


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Inside, torch draws from a stream that `seed` settles; the caller's goes on untouched."""
    with preserve_rng():
        torch.manual_seed(DISTANT + seed)
        yield
