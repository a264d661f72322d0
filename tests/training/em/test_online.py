"""Online EM against EM over all rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm import fit_em
from ppl_lvm.data import load_data
from ppl_lvm.models import PPCA, FactorAnalysis
from ppl_lvm.models.gmm import COVARIANCES, GaussianMixture

pytestmark = pytest.mark.usefixtures("doubles")


def _clusters(N: int) -> Tensor:
    """Two overlapping clusters (N, 2)."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(N, 2, generator=draw) * torch.tensor([1.0, 0.4])
    x[: N // 3] += torch.tensor([2.5, 1.0])
    return x


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_online_em_reaches_nearly_the_optimum_in_four_passes(covariance: str) -> None:
    x = _clusters(2000)
    settings = {"components": 2, "covariance": covariance}
    exact = fit_em(GaussianMixture, x, settings=settings, tolerance=1e-9)
    early = fit_em(GaussianMixture, x, settings=settings, max_iterations=3)
    online = fit_em(
        GaussianMixture, x, settings=settings, decay=0.6, max_iterations=4, batch_size=100
    )
    short = exact.results["bound"] - online.results["bound"]
    assert -1e-9 < short < 2e-4
    assert short < exact.results["bound"] - early.results["bound"]  # 3 E-steps over all rows
    model: Any = online.model
    likelihood = model.log_likelihood(x).mean().item()
    assert online.results["bound"] == pytest.approx(likelihood, abs=1e-9)
    assert len(online.history["bound"]) == 4 + 1


@pytest.mark.parametrize(
    "model", [PPCA(1), pytest.param(FactorAnalysis(1), marks=pytest.mark.slow)]
)
def test_online_em_fits_linear_models_with_missing_values(model: Any) -> None:
    z = torch.randn(2000, 1)
    x = z * torch.tensor([2.0, 1.0, -1.0, 0.5]) + 0.5 * torch.randn(2000, 4) + 10
    x = torch.where(torch.rand(2000, 4) < 0.1, torch.nan, x)
    data = load_data(x.numpy(), missing="keep")
    exact = fit_em(model, data, tolerance=1e-9)
    online = fit_em(model, data, decay=0.6, max_iterations=5, batch_size=100)
    sampling = 9 / (2 * 2000)  # sampling error of at least 9 parameters
    assert -1e-9 < exact.results["bound"] - online.results["bound"] < sampling


class _Untransported(GaussianMixture):
    """A wrong twin: statistics at θ are taken for statistics at θ'."""

    def transport_statistics(self, state: Any, new: Any, made_of: Any, statistics: Any) -> Any:
        return statistics


@pytest.mark.slow
def test_online_em_without_transport_of_statistics_ends_far_from_the_optimum() -> None:
    x = _clusters(2000)
    exact = fit_em(GaussianMixture(2), x, tolerance=1e-9)
    wrong = fit_em(_Untransported(2), x, decay=0.6, max_iterations=4, batch_size=100)
    assert exact.results["bound"] - wrong.results["bound"] > 0.008  # 4 × the right one


def test_online_em_rejects_a_decay_of_one_half() -> None:
    with pytest.raises(ValueError, match=r"decay=0\.5 is too small\. Pass a number above 0\.5"):
        fit_em(GaussianMixture(3), _clusters(20), decay=0.5)
