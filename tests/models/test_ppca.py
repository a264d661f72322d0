"""PPCA against scikit-learn, SciPy, EM and SVI."""

import re
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.decomposition import PCA
from torch import Tensor

from ppl_lvm import fit_em
from ppl_lvm.data import load_data
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.ppca import PPCA
from ppl_lvm.programs.exact_posterior import ExactPosterior
from ppl_lvm.runs.directory import load_run

pytestmark = pytest.mark.usefixtures("doubles")


def _with_holes(x: Tensor) -> Tensor:
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    holes[0] = False
    holes[1] = True  # a row of which nothing is known
    return torch.where(holes, torch.nan, x)


def _normal(model: Any, x: Tensor) -> Tensor:
    """log p of the present values, by SciPy."""
    covariance = (model.W @ model.W.mT + model.noise * torch.eye(x.shape[1])).detach().numpy()
    mu, result = model.mu.detach().numpy(), []
    for row in x.numpy():
        o = ~np.isnan(row)
        normal = scipy.stats.multivariate_normal
        result.append(normal(mu[o], covariance[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0)
    return torch.tensor(result)


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_ppca_closed_form_equals_scikit_learn(iris: Tensor, latent: int) -> None:
    model = PPCA(latent, floor=1e-12)
    model.maximize(iris, correction=1)
    expected = PCA(latent).fit(iris.numpy()).score(iris.numpy())
    assert model.log_evidence(iris).mean().item() == pytest.approx(expected, abs=1e-9)
    model.maximize(iris)  # the maximum: dividing by N - 1 is not
    assert model.log_evidence(iris).mean().item() > expected + 1e-6


@pytest.mark.parametrize("holes", [False, True])
def test_ppca_evidence_equals_scipy(iris: Tensor, holes: bool) -> None:
    model, x = PPCA(2), _with_holes(iris) if holes else iris
    model.initialize(x)
    torch.testing.assert_close(model.log_evidence(x).detach(), _normal(model, x))
    filled = x.nan_to_num(0.0)
    assert torch.allclose(model.log_evidence(filled), model.log_evidence(x)) is not holes


def test_ppca_em_reaches_the_closed_form(iris: Tensor) -> None:
    model = PPCA(2)
    model.maximize(iris)
    run = fit_em(PPCA(2), iris, tolerance=1e-13, max_iterations=5000)
    exact = model.log_evidence(iris).mean().item()
    assert run.results["bound"] == pytest.approx(exact, abs=1e-10)
    result: Any = run.model
    torch.testing.assert_close(result.W @ result.W.mT, model.W @ model.W.mT, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.noise, model.noise, rtol=1e-5, atol=0)


def test_ppca_em_with_missing_values_ends_at_zero_gradient(iris: Tensor) -> None:
    x = _with_holes(iris)
    data = load_data(x.numpy(), missing="keep")
    run = fit_em(PPCA(2), data, tolerance=1e-14, max_iterations=5000)
    model: Any = run.model
    model.log_evidence(x).mean().backward()
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-5
    assert run.results["bound"] == pytest.approx(_normal(model, x).mean().item(), abs=1e-9)
    filled = PPCA(2)  # a wrong twin: column means in place of what is missing
    filled.maximize(torch.where(x.isnan(), x.nanmean(0), x))
    assert filled.log_evidence(x).mean().item() < run.results["bound"] - 0.1


def test_ppca_bound_equals_the_evidence_at_the_exact_posterior(iris: Tensor) -> None:
    x = _with_holes(iris)
    model = PPCA(2)
    model.initialize(x)
    guide = ExactPosterior(model)
    exact = model.log_evidence(x).sum().item()
    for _ in range(2):  # whatever z is drawn
        assert -Trace_ELBO().loss(model, guide, x) == pytest.approx(exact, rel=1e-9)
    other = PPCA(2, observed=4)
    assert -Trace_ELBO().loss(model, ExactPosterior(other), x) < exact - 1


@pytest.mark.slow
def test_ppca_svi_reaches_the_closed_form(iris: Tensor) -> None:
    x = iris - iris.mean(0)
    exact, model = PPCA(2), PPCA(2)
    exact.maximize(x)
    model.initialize(x)
    guide = AmortizedNormal(model, x, hidden=())  # the posterior mean is linear in x
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    for lr in (0.02, 0.002):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo)
        for _ in range(800):
            svi.step(x)
    optimum = exact.log_evidence(x).mean().item()
    assert model.log_evidence(x).mean().item() == pytest.approx(optimum, abs=0.01)


def test_ppca_run_encodes_and_loads(iris: Tensor, tmp_path: Any) -> None:
    run = fit_em(PPCA, iris, directory=tmp_path / "run")
    assert run.results["log_evidence"] == pytest.approx(run.results["bound"], abs=1e-6)
    codes = run.encode(iris)["z"]
    loaded = load_run(tmp_path / "run")
    torch.testing.assert_close(loaded.encode(iris)["z"], codes)
    assert loaded.sample(5)["x"].shape == (5, 4)


@pytest.mark.slow
def test_ppca_degenerate_names_rows_in_a_subspace() -> None:
    """Single precision loses the smaller of two factors, and the guide fails."""
    torch.set_default_dtype(torch.float32)
    for x in (torch.randn(2, 5), torch.randn(40, 2) @ torch.randn(2, 5) * 1e4):
        run = fit_em(PPCA(2), x)
        assert "no noise is left: the rows lie in a subspace of 2" in run.results["degenerate"]
        model: Any = run.model
        result = model.log_evidence(x).mean().item()
        assert result == pytest.approx(run.results["bound"], abs=0.5)
        assert run.encode(x)["z"].isfinite().all()
    flat = "the columns vary by no more than .* Scale them"  # rounding to 1e-3 is all there is
    for center, scale, message in ((0.0, 1e-4, None), (1e4, 1e-3, flat)):
        x = center + scale * torch.randn(50, 3)
        reason = fit_em(PPCA(1), x).results["degenerate"]
        assert reason is None if message is None else re.match(message, reason)
