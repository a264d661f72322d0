"""Mixtures with missing values against SciPy's marginals."""

from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from sklearn.datasets import load_iris
from torch import Tensor

from ppl_lvm import NotMonotoneError, fit_em
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.gmm import COVARIANCES, GaussianMixture
from ppl_lvm.models.parts.mixtures import missing as mixture_missing

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.fixture(scope="module")
def holed() -> Tensor:
    x = torch.tensor(load_iris().data)
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    missing[0] = False
    missing[1] = True  # a row of which nothing is known
    return torch.where(missing, torch.nan, x)


def _started(covariance: str, x: Tensor) -> GaussianMixture:
    model = GaussianMixture(3, covariance=covariance)
    model.initialize(x)
    return model


def _scipy(model: Any, x: Tensor) -> Tensor:
    """log p of the present values."""
    weights, means = model.weights.detach().numpy(), model.means.detach().numpy()
    covariances, result = model.covariance_matrix.detach().numpy(), []
    for row in x.numpy():
        o = ~np.isnan(row)
        density = [
            scipy.stats.multivariate_normal(mu[o], S[np.ix_(o, o)]).pdf(row[o]) if o.any() else 1.0
            for mu, S in zip(means, covariances, strict=True)
        ]
        result.append(np.log(weights @ density))
    return torch.tensor(np.array(result))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_mixture_likelihood_with_missing_values_equals_scipy(
    holed: Tensor, covariance: str
) -> None:
    model = _started(covariance, holed)
    exact = _scipy(model, holed)
    torch.testing.assert_close(model.log_likelihood(holed).detach(), exact)
    _, by_em = model.e_step(model.em_state(), holed)
    torch.testing.assert_close(by_em, exact.sum())
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, holed)
    assert -loss == pytest.approx(exact.sum().item(), rel=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_missing_e_step_equals_the_sum_over_rows(holed: Tensor, covariance: str) -> None:
    """Rows with one pattern share factors; single rows do not."""
    model = _started(covariance, holed)
    state = model.em_state()
    together, _ = model.e_step(state, holed)
    alone = [model.e_step(state, row[None])[0] for row in holed]
    for name, total in together.items():
        torch.testing.assert_close(total, sum(each[name] for each in alone))


@pytest.mark.parametrize(
    "covariance",
    [
        pytest.param(each, marks=[pytest.mark.slow] if each != "full" else [])
        for each in COVARIANCES
    ],
)
def test_mixture_em_with_missing_values_ends_at_zero_gradient(
    holed: Tensor, covariance: str
) -> None:
    data = load_data(holed.numpy(), missing="keep")
    settings = {"components": 2, "covariance": covariance}
    run = fit_em(GaussianMixture, data, settings=settings, tolerance=1e-13, max_iterations=3000)
    model: Any = run.model
    assert run.results["converged"]
    assert run.results["bound"] == pytest.approx(_scipy(model, holed).mean().item(), abs=1e-9)
    model.log_likelihood(holed).mean().backward()
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-4
    filled = torch.where(holed.isnan(), holed.nanmean(0), holed)  # a wrong twin
    wrong: Any = fit_em(GaussianMixture, filled, settings=settings, tolerance=1e-9).model
    assert wrong.log_likelihood(holed).mean().item() < run.results["bound"] - 0.05


def test_mean_imputation_shrinks_variances(holed: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong twin, caught by the same gradient as above."""
    monkeypatch.setattr(mixture_missing, "_spread", torch.zeros_like)
    data = load_data(holed.numpy(), missing="keep")
    try:
        run = fit_em(GaussianMixture, data, settings={"components": 2}, max_iterations=50)
    except NotMonotoneError:
        return
    model: Any = run.model
    model.log_likelihood(holed).mean().backward()
    result = max(p.grad.abs().max().item() for p in model.parameters())
    assert result > 1e-2


def test_gmm_svi_with_missing_values_reaches_the_em_optimum(holed: Tensor) -> None:
    model = GaussianMixture(1)  # one component: a concave problem in all but name
    model.initialize(holed)
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(300):
        svi.step(holed)
    data = load_data(holed.numpy(), missing="keep")
    best = fit_em(GaussianMixture, data, settings={"components": 1}, tolerance=1e-10)
    result = model.log_likelihood(holed).mean().item()
    assert result == pytest.approx(best.results["bound"], abs=1e-3)


def test_gmm_initialize_names_a_column_without_a_value() -> None:
    x = torch.randn(20, 3)
    x[:, 1] = torch.nan
    with pytest.raises(ValueError, match="Column 1 has no value in 20 rows"):
        GaussianMixture(2).initialize(x)


def test_mixtures_train_by_svi_with_missing_values(holed: Tensor) -> None:
    data = load_data(holed.numpy(), missing="keep")
    settings = {"components": 2}
    run = fit(GaussianMixture, None, data, settings=settings, num_steps=3, batch_size=60)
    model: Any = run.model
    exact = model.log_likelihood(holed).mean().item()
    assert run.results["bound"] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_gmm_degenerate_names_a_collapsed_component_with_missing_values(covariance: str) -> None:
    """Mean imputation would widen the component."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, generator=draw)
    x[:40] += 8
    x[:40, 1] = 6.0
    x[torch.rand(x.shape, generator=draw) < 0.3] = torch.nan
    settings = {"components": 2, "covariance": covariance}
    data = load_data(x.numpy(), missing="keep")
    run = fit_em(GaussianMixture, data, settings=settings, max_iterations=100)
    assert "has collapsed: it rests on 40 of 120 rows" in str(run.results["degenerate"])
    x[:40, 1] += torch.randn(40, generator=draw)
    data = load_data(x.numpy(), missing="keep")
    run = fit_em(GaussianMixture, data, settings=settings, max_iterations=100)
    assert run.results["degenerate"] is None


def test_marginal_normal_is_finite_for_narrow_components_in_single_precision() -> None:
    """Beside columns of 1,000, L Lᵀ in single precision has no factor."""
    L = torch.tensor([[1e3, 0.0, 0.0], [0.0, 1e3, 0.0], [1e3, 1e3, 1e-2]])
    x = torch.tensor([[1e3, 2e3, 3e3], [1e3, torch.nan, 1e3], [torch.nan, 0.0, 5e2]])
    result = mixture_missing.MarginalNormal(torch.zeros(3), scale_tril=L).log_prob(x.float())
    exact = mixture_missing.MarginalNormal(torch.zeros(3), scale_tril=L.double()).log_prob(x)
    torch.testing.assert_close(result.double(), exact, rtol=1e-3, atol=1e-3)
