"""State before every test; compiler passes are strict."""

from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch

from ppl_lvm.compiler.passes import strict_passes

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _fresh_pyro() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    # A fixture of a whole module runs before this one: what it left is not to be kept.
    torch.set_default_dtype(torch.float32)
    with pyro.validation_enabled(True), strict_passes():
        yield
    torch.set_default_dtype(torch.float32)
