"""Factor models against SciPy's densities integrated over z."""

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.factor_model import LIKELIHOODS, FactorModel


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)


def _counts(N: int = 60) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(N, 1, generator=draw)
    rate = (z * torch.tensor([0.8, -0.5, 0.3]) + torch.tensor([0.5, 1.0, 2.0])).exp()
    return torch.poisson(rate, generator=draw)


def _started(likelihood: str, x: Tensor) -> FactorModel:
    model = FactorModel(1, likelihood=likelihood)
    model.initialize(x)
    return model


def _density(model: FactorModel, eta: np.ndarray, p: int) -> Any:
    if model.likelihood == "poisson":
        return scipy.stats.poisson(np.exp(eta))
    if model.likelihood == "bernoulli":
        return scipy.stats.bernoulli(1 / (1 + np.exp(-eta)))
    a = model.dispersion[p].item()
    return scipy.stats.nbinom(1 / a, 1 / (1 + a * np.exp(eta)))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_factor_model_log_evidence_equals_the_integral(likelihood: str) -> None:
    x = _counts() if likelihood != "bernoulli" else (_counts() > 2).double()
    model = _started(likelihood, x)
    holed = x[:3].clone()
    holed[1, 2] = torch.nan
    W, b = model.W.detach().numpy()[:, 0], model.b.detach().numpy()
    for row, result in zip(holed.numpy(), model.log_evidence(holed, 81).tolist(), strict=True):

        def joint(z: float, row: np.ndarray = row) -> float:
            seen = [p for p in range(3) if not np.isnan(row[p])]
            mass = [_density(model, W[p] * z + b[p], p).pmf(row[p]) for p in seen]
            return float(scipy.stats.norm.pdf(z) * np.prod(mass))

        exact, _ = scipy.integrate.quad(joint, -9, 9, epsabs=1e-13)
        assert result == pytest.approx(np.log(exact), abs=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_factor_model_ignores_missing_values(likelihood: str) -> None:
    x = _counts(5) if likelihood != "bernoulli" else (_counts(5) > 2).double()
    model = _started(likelihood, x)
    z = torch.randn(5, 1)
    eta = (z @ model.W.mT + model.b).detach().numpy()
    each = np.stack([_density(model, eta[:, p], p).logpmf(x[:, p]) for p in range(3)], -1)
    x[1, 2], x[3] = torch.nan, torch.nan
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    result = trace.nodes["x"]["log_prob"].detach().numpy()
    np.testing.assert_allclose(result, np.where(x.isnan(), 0.0, each).sum(-1), atol=1e-12)


def test_factor_model_negative_binomial_has_the_variance_of_its_dispersion() -> None:
    model = _started("negative-binomial", _counts())
    fn = model._likelihood(torch.randn(4, 1))
    torch.testing.assert_close(fn.variance, fn.mean + model.dispersion * fn.mean.square())


def test_factor_model_fit_estimates_the_integral_as_evidence() -> None:
    x = _counts()
    run = fit(FactorModel, AmortizedNormal, x, settings={"latent": 1}, num_steps=150)
    model: Any = run.model
    exact = model.log_evidence(x).mean().item()
    drawn = run.log_evidence(x, 500)
    assert drawn.value == pytest.approx(exact, abs=5 * drawn.monte_carlo_error)
    assert run.results["bound"] < exact
    start = _started("poisson", x)
    assert exact > start.log_evidence(x).mean().item()


@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        ("poisson", -1.0, r"needs counts 0, 1, 2, …, but row 4, column 1 of x is -1"),
        ("negative-binomial", 0.5, r"row 4, column 1 of x is 0\.5"),
        ("bernoulli", 2.0, r"needs 0 or 1, but row 4, column 1 of x is 2"),
    ],
)
def test_factor_model_rejects_values_outside_the_support(
    likelihood: str, value: float, message: str
) -> None:
    x = torch.ones(8, 3)
    x[4, 1] = value
    with pytest.raises(ValueError, match=message):
        FactorModel(1, likelihood=likelihood).initialize(x)
    model = FactorModel(1, 3, likelihood=likelihood)
    findings = check(model, AmortizedNormal(model, torch.ones(8, 3)), x)
    assert "'x'" in str(findings.errors[0])


def test_factor_model_rejects_invalid_arguments_and_data() -> None:
    with pytest.raises(ValueError, match=r"Unknown likelihood 'normal'\. Available: "):
        FactorModel(likelihood="normal")
    with pytest.raises(ValueError, match="Quadrature over 3 factors"):
        FactorModel(3, 3).log_evidence(_counts())
    x = torch.where(torch.arange(3) == 1, torch.nan, _counts())
    with pytest.raises(ValueError, match="Column 1 has no value in 60 rows"):
        FactorModel(1).initialize(load_data(x.numpy(), missing="keep").tensors[0])
