"""Gaussian mixture against SciPy, and on Iris."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from largest_tensor import LargestTensor
from ppl_lvm import fit_em
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.gmm import COVARIANCES, GaussianMixture
from ppl_lvm.models.parts.cholesky import cholesky_above
from ppl_lvm.models.parts.mixtures.moments import moments
from ppl_lvm.runs.directory import load_run


def _empty_guide(x: Tensor) -> None:
    """z is enumerated in the model, so there is no latent to sample."""


@pytest.fixture(scope="module")
def iris() -> Tensor:
    return torch.tensor(load_iris().data).float()


def _scattered(covariance: str) -> GaussianMixture:
    """A mixture with distinct parameters, in double precision."""
    model = GaussianMixture(3, covariance=covariance, floor=0.01)
    x = torch.randn(40, 2, dtype=torch.float64)
    model.maximize(x, torch.distributions.Dirichlet(torch.ones(3).double()).sample((40,)))
    return model


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gmm_log_likelihood_equals_scipy(covariance: str) -> None:
    model, x = _scattered(covariance), torch.randn(7, 2, dtype=torch.float64)
    density = sum(
        pi * scipy.stats.multivariate_normal(mu, sigma).pdf(x)
        for pi, mu, sigma in zip(
            model.weights.detach().numpy(),
            model.means.detach().numpy(),
            model.covariance_matrix.detach().numpy(),
            strict=True,
        )
    )
    np.testing.assert_allclose(model.log_likelihood(x).detach(), np.log(density), rtol=1e-10)


def test_gmm_maximize_never_lowers_the_likelihood() -> None:
    model, x = _scattered("full"), torch.randn(40, 2, dtype=torch.float64)
    before = -torch.inf
    for _ in range(20):
        model.maximize(x, model.responsibilities(x))
        now = model.log_likelihood(x).mean().item()
        assert now >= before - 1e-12
        before = now


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gmm_variances_stay_above_the_floor(covariance: str) -> None:
    model = GaussianMixture(2, covariance=covariance, floor=0.1)
    model.maximize(torch.ones(6, 3), torch.full((6, 2), 0.5))
    least = torch.linalg.eigvalsh(model.covariance_matrix.double())[:, 0]
    assert (least >= 0.1).all()


def test_cholesky_above_is_exact_for_a_covariance_above_the_floor() -> None:
    A = torch.randn(3, 4, 4, dtype=torch.float64)
    scatter = A @ A.mT + torch.eye(4)
    L = cholesky_above(scatter, 1e-3)
    torch.testing.assert_close(L @ L.mT + 1e-3 * torch.eye(4), scatter, check_dtype=False)


def test_mixture_moments_equal_numpy_weighted_moments() -> None:
    x = torch.randn(30, 2, dtype=torch.float64)
    r = torch.distributions.Dirichlet(torch.ones(3).double()).sample((30,))
    weights, means, scatter = moments(x, r)
    for k in range(3):
        expected = np.cov(x.T.numpy(), aweights=r[:, k].numpy(), bias=True)
        np.testing.assert_allclose(scatter[k], expected)
        np.testing.assert_allclose(means[k], np.average(x, axis=0, weights=r[:, k]))
    torch.testing.assert_close(weights, r.mean(0))


def _train(model: GaussianMixture, x: Tensor, num_steps: int) -> None:
    svi = SVI(model, _empty_guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(num_steps):
        svi.step(x)


@pytest.mark.slow
def test_gmm_plain_svi_reaches_the_known_optimum_on_iris(iris: Tensor) -> None:
    model = GaussianMixture(components=3)
    model.initialize(iris)
    _train(model, iris, 400)
    assert model.log_likelihood(iris).mean().item() == pytest.approx(-1.2012, abs=1e-3)
    clusters = model.responsibilities(iris).argmax(-1)
    assert adjusted_rand_score(load_iris().target, clusters) >= 0.90
    assert model.degenerate(iris) is None


def test_gmm_degenerate_names_a_collapsed_component_on_iris(iris: Tensor) -> None:
    """29 flowers have petals 0.2 cm wide: a component on these alone has no width there."""
    x = iris.double()
    model = GaussianMixture(components=3)
    species = torch.tensor(load_iris().target)
    start = torch.where(species == 0, (iris[:, 3] == 0.2).long(), 2)
    model.maximize(x, torch.nn.functional.one_hot(start, 3))
    for _ in range(100):
        model.maximize(x, model.responsibilities(x))
    assert model.log_likelihood(x).mean() > -1.19  # better than the true optimum: too good
    reason = model.degenerate(x)
    assert reason is not None
    assert "component 1 has collapsed: it rests on 29 of 150 rows" in reason
    assert "raise floor" in reason


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_gmm_degenerate_names_a_component_on_duplicated_rows(covariance: str) -> None:
    x = torch.cat([torch.randn(40, 2), torch.tensor([[3.0, 3.0]]).repeat(5, 1)])
    model = GaussianMixture(2, covariance=covariance)
    r = torch.zeros(45, 2)
    r[:40, 0] = r[40:, 1] = 1
    model.maximize(x, r)
    assert "component 1 has collapsed: it rests on 5 of 45 rows, 1 of them distinct" in str(
        model.degenerate(x)
    )
    r[35:40] = torch.tensor([0.0, 1.0])  # five rows more, and it stands on its own
    model.maximize(x, r)
    assert model.degenerate(x) is None


def test_gmm_memory_is_linear_in_rows_components_and_columns() -> None:
    N, K, P = 200, 5, 8
    model, x = GaussianMixture(K), torch.randn(N, P)
    model.initialize(x)
    with LargestTensor() as largest:
        TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, _empty_guide, x)
    assert largest.elements <= N * K * P
    with LargestTensor() as largest:
        model.responsibilities(x)
    assert largest.elements <= N * K * P


@pytest.mark.parametrize("holes", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", ["em", "svi"])
def test_gmm_of_one_component_has_constant_weight(
    iris: Tensor, by: str, holes: bool, tmp_path: Path
) -> None:
    """It is a Gaussian: its optimum is the moments', and every parameter has a gradient."""
    x = iris.float().clone()
    if holes:
        x[::5, 1] = torch.nan
    data = load_data(x, missing="keep")
    settings = {"components": 1}
    place = tmp_path / "run"
    if by == "em":
        run = fit_em(GaussianMixture, data, settings=settings, tolerance=1e-9, directory=place)
    else:
        run = fit(GaussianMixture, None, data, settings=settings, num_steps=100, directory=place)
    again: Any = load_run(place).model
    assert {n.rpartition(".")[2] for n, _ in again.named_parameters()} == {
        "means_unconstrained",
        "scale_tril_unconstrained",
    }
    assert again.weights.tolist() == [1.0]
    if not holes:
        exact = scipy.stats.multivariate_normal(x.mean(0), x.T.double().cov(correction=0))
        assert run.results["bound"] == pytest.approx(exact.logpdf(x).mean(), abs=2e-2)
    for parameter in again.parameters():
        parameter.requires_grad_(True)
        with torch.no_grad():
            parameter += 0.1
    again.log_likelihood(x).mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in again.parameters())


@pytest.mark.parametrize(
    "size",
    [pytest.param(1.0, marks=pytest.mark.slow), 1e3, pytest.param(1e6, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("by", ["em", "svi"])
def test_gmm_degenerate_names_collinear_columns(by: str, size: float) -> None:
    """One is the sum of the others: in single precision the covariance had no factor."""
    if by == "svi" and size == 1e6:
        return  # there the rounding of values alone is several nats
    parts = torch.rand(200, 2)
    x = size * torch.cat([parts, parts.sum(1, keepdim=True), torch.randn(200, 1)], 1)
    if by == "em":
        run = fit_em(GaussianMixture(2), x)
    else:
        run = fit(GaussianMixture(2), None, x, num_steps=3)
    assert run.results["degenerate"].startswith("columns 0, 1, 2 are linearly dependent")
    model: Any = run.model
    assert model.log_likelihood(x).isfinite().all()


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_gmm_degenerate_names_a_flat_column_instead_of_a_component(covariance: str) -> None:
    x = torch.randn(100, 3).double()
    for spread, message in (
        (0.0, "column 2 is constant. Leave it out"),
        (1e-3, "column 2 varies by no more than .* Scale it"),
        (2.6e-3, None),  # variances of 3 to 5 floors, which the floor leaves as they are
    ):
        x[:, 2] = spread * (x[:, 2] - x[:, 2].mean()) / x[:, 2].std().clamp(min=1e-9)
        model = GaussianMixture(1, covariance=covariance)
        model.maximize(x, torch.ones(100, 1))
        reason = model.degenerate(x)
        assert reason is None if message is None else re.match(message, str(reason))
        x[:, 2] = torch.randn(100).double()
