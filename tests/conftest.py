"""State before every test; compiler passes are strict."""

import gc
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import matplotlib
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from ppl_lvm.compiler.passes import strict_passes

matplotlib.use("Agg")

# For a device that may be used later, torch keeps the seed and formats the stack, 3 ms deep in
# pytest. Where there is no device, only the generator of the CPU takes seeds.
if not torch.accelerator.is_available():
    for backend in (torch.cuda, torch.xpu, torch.mtia):
        backend.manual_seed_all = lambda seed: None


def pytest_collection_finish() -> None:
    """Exclude imported modules and collected tests from the garbage collector's work."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_pyro() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    # Fixtures of modules run before this one and may have changed the type.
    torch.set_default_dtype(torch.float32)
    with pyro.validation_enabled(True), strict_passes():
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _same_process() -> Iterator[None]:
    """A test that silences a logger, say, changes the results of later ones; it fails itself."""
    before = _process()
    yield
    assert _process() == before


def _process() -> dict[str, object]:
    loggers = (logging.root, logging.getLogger("ppl_lvm"), logging.getLogger("ppl_lvm.compiler"))
    return {
        "loggers": [(log.name, log.propagate, log.disabled, log.level) for log in loggers],
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "folder": Path.cwd(),
        "handlers": _PYRO_STACK[:],
    }


@pytest.fixture(autouse=True)
def _no_modules_of_temporary_folders(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Forget modules that a test imported from its folder, so that no later test meets them."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
            del sys.modules[name]


@pytest.fixture
def no_figures() -> Iterator[None]:
    """Directories of runs have no figures, which take longer than a short fit."""
    with mock.patch("ppl_lvm.report.run_figures.draw"):
        yield


@pytest.fixture
def doubles() -> None:
    """Tensors have double precision, as arrays do."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def iris() -> Tensor:
    """150 flowers, four columns (150, 4), in double precision."""
    from sklearn.datasets import load_iris

    return torch.tensor(load_iris().data)
