"""Mixture of PPCA against PPCA and dense mixtures."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppl_lvm import NotMonotoneError, fit_em
from ppl_lvm.data import load_data
from ppl_lvm.models import PPCA, GaussianMixture, MixtureOfPPCA
from ppl_lvm.runs.directory import load_run

pytestmark = pytest.mark.usefixtures("doubles")


def _started(x: Tensor, **settings: Any) -> MixtureOfPPCA:
    model = MixtureOfPPCA(**settings)
    model.initialize(x)
    return model


def test_mixture_of_ppca_with_one_component_equals_ppca(iris: Tensor) -> None:
    run = fit_em(MixtureOfPPCA, iris, settings={"components": 1, "latent": 2})
    exact = PPCA(2)
    exact.maximize(iris)
    assert run.results["steps"] <= 3  # its M-step is the closed form
    assert run.results["bound"] == pytest.approx(exact.log_evidence(iris).mean().item(), abs=1e-12)
    result: Any = run.model
    torch.testing.assert_close(result.W[0] @ result.W[0].mT, exact.W @ exact.W.mT)
    torch.testing.assert_close(result.noise[0], exact.noise)


def test_mixture_of_ppca_density_equals_a_dense_mixture(iris: Tensor) -> None:
    model = _started(iris, components=3, latent=2)
    density = sum(
        pi * scipy.stats.multivariate_normal(mu, S).pdf(iris)
        for pi, mu, S in zip(
            model.weights.detach().numpy(),
            model.means.detach().numpy(),
            model.covariance_matrix.detach().numpy(),
            strict=True,
        )
    )
    exact = torch.tensor(np.log(density))
    torch.testing.assert_close(model.log_evidence(iris).detach(), exact)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, iris)
    assert -loss == pytest.approx(exact.sum().item(), rel=1e-12)
    assert model.e_step(model.em_state(), iris)[1].item() == pytest.approx(-loss, rel=1e-12)


def test_mixture_of_ppca_with_maximal_latent_equals_full_covariances(iris: Tensor) -> None:
    full = fit_em(GaussianMixture, iris, settings={"components": 2}, tolerance=1e-11)
    flat = fit_em(MixtureOfPPCA, iris, settings={"components": 2, "latent": 3}, tolerance=1e-11)
    assert flat.results["bound"] == pytest.approx(full.results["bound"], abs=1e-7)


@pytest.mark.parametrize("missing", [False, True])
def test_mixture_of_ppca_em_ends_at_zero_gradient(iris: Tensor, missing: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    gone = torch.rand(iris.shape, generator=draw) < 0.15
    x = torch.where(gone, torch.nan, iris) if missing else iris
    run = fit_em(
        MixtureOfPPCA,
        load_data(x.numpy(), missing="keep"),
        settings={"components": 2, "latent": 1},
        tolerance=1e-13,
        max_iterations=3000,
    )
    model: Any = run.model
    model.log_evidence(x).mean().backward()
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-4


class _WithoutNoise(MixtureOfPPCA):
    """A wrong twin: W keeps the whole of the leading eigenvalues."""

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        new = super().m_step(state, statistics)
        length = new["W"].norm(dim=-2, keepdim=True)
        longer = (length.square() + new["noise"][..., None, None]).sqrt() / length
        return {**new, "W": new["W"] * longer}


def test_mixture_of_ppca_wrong_m_step_is_detected(iris: Tensor) -> None:
    with pytest.raises(NotMonotoneError):
        fit_em(_WithoutNoise(3, 2), iris, tolerance=1e-12)


def test_mixture_of_ppca_degenerate_names_a_flat_component() -> None:
    x = torch.randn(60, 3)
    x[:30, 1:] = 5.0  # a line
    run = fit_em(MixtureOfPPCA, x, settings={"components": 2, "latent": 1})
    assert "collapsed" in str(run.results["degenerate"])


def test_mixture_of_ppca_codes_equal_ppca_and_its_run_loads(iris: Tensor, tmp_path: Any) -> None:
    settings = {"components": 1, "latent": 2}
    fit_em(MixtureOfPPCA, iris, settings=settings, directory=tmp_path / "run")
    model: Any = load_run(tmp_path / "run").model
    exact = PPCA(2)
    exact.maximize(iris)
    codes = model.codes(iris)[:, 0]  # (N, D), up to a rotation
    assert torch.allclose(codes.mT @ codes, torch.diag((codes.mT @ codes).diagonal()), atol=1e-8)
    lifted = codes @ model.W[0].mT
    precision = exact.W.mT @ exact.W + exact.noise * torch.eye(2)
    known = (iris - exact.mu) @ exact.W @ torch.linalg.inv(precision) @ exact.W.mT
    torch.testing.assert_close(lifted, known)
