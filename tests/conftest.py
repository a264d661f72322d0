"""State before every test; compiler passes are strict."""

from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch
from torch import Tensor

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


@pytest.fixture
def doubles() -> None:
    """Tensors have double precision, as arrays do."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def iris() -> Tensor:
    """150 flowers, four columns (150, 4), in double precision."""
    from sklearn.datasets import load_iris

    return torch.tensor(load_iris().data)
