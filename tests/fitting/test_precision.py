"""Data in double precision stay so."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ppl_lvm import fit, fit_em, fit_mcem, load_data, load_run
from ppl_lvm.models import PPCA, VAE, GaussianMixture
from ppl_lvm.programs.precision import precision_of

pytestmark = pytest.mark.usefixtures("no_figures")

OFFSET = 1e8  # beside which float32 loses the data
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=GENERATOR, dtype=torch.float64)
OPTIONS: dict[str, Any] = {"num_steps": 20, "progress": False}


def fit_gmm(x: Any, **options: Any) -> Any:
    return fit_em(GaussianMixture(2), x, **options)


FITS: dict[str, Any] = {
    "em": fit_gmm,
    "svi": lambda x, **options: fit(GaussianMixture(2), None, x, **OPTIONS, **options),
    "networks": lambda x, **options: fit(
        VAE(2, likelihood="gaussian"), None, x, **OPTIONS, **options
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_fits_of_double_tensors_do_not_depend_on_an_offset(name: str) -> None:
    moved, centered = (FITS[name](x) for x in (X + OFFSET, X))
    assert moved.results["bound"] == pytest.approx(centered.results["bound"], abs=1e-4)
    assert {p.dtype for p in moved.parameters().values()} == {torch.float64}
    with pytest.raises(ValueError, match=r"distinct rows|the same"):
        FITS[name]((X + OFFSET).float())


@pytest.mark.parametrize("name", FITS)
def test_run_in_double_precision_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    run = FITS[name](X + OFFSET, directory=tmp_path, validation=10)
    loaded = load_run(tmp_path)
    for one, other in zip(
        run.encode(X + OFFSET).values(), loaded.encode(X + OFFSET).values(), strict=True
    ):
        assert one.dtype == other.dtype == torch.float64
        assert torch.equal(one, other)
    evidence = loaded.log_evidence(X[:5] + OFFSET, 100)
    assert evidence.value == pytest.approx(run.log_evidence(X[:5] + OFFSET, 100).value, abs=1e-9)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.slow
def test_monte_carlo_em_runs_in_double_precision() -> None:
    run = fit_mcem(PPCA(1), X, max_iterations=2, num_draws=5, warmup=5, guide_steps=5)
    assert {p.dtype for p in run.parameters().values()} == {torch.float64}


def test_programs_of_single_precision_are_refused_with_the_remedy() -> None:
    weights = torch.ones(3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0 * x[:, 0], 1.0))
            pyro.sample("x", pyro.distributions.Normal(x @ weights + z, 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match=r"dtype"):
        fit(model, None, X, **OPTIONS)
    fit(model, None, X.float(), **OPTIONS)


def test_precision_of_data_is_that_of_their_tensors() -> None:
    single = X.float()
    assert precision_of((single, X)) is torch.float64
    assert precision_of({"x": [X]}) is torch.float64
    assert precision_of(DataLoader(TensorDataset(single, X))) is torch.float64
    assert precision_of((single, torch.arange(3))) is None
    assert (
        precision_of("iris") is precision_of(load_data(single)) is precision_of(X.numpy()) is None
    )
