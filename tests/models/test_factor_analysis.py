"""Factor analysis against scikit-learn's optimum and SciPy's normal density."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO
from sklearn.decomposition import FactorAnalysis as Sklearn
from torch import Tensor

from ppl_lvm import fit_em
from ppl_lvm.data import load_data
from ppl_lvm.models.factor_analysis import FactorAnalysis
from ppl_lvm.models.parts.factors import boundary
from ppl_lvm.models.parts.factors.linear_gaussian import log_evidence
from ppl_lvm.models.ppca import PPCA
from ppl_lvm.programs.exact_posterior import ExactPosterior

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Two factors, eight columns in different units."""
    draw = torch.Generator().manual_seed(3)
    z, noise = (torch.randn(400, d, generator=draw, dtype=torch.float64) for d in (2, 8))
    W = torch.randn(8, 2, generator=draw, dtype=torch.float64)
    units = torch.logspace(-1, 1, 8, dtype=torch.float64)
    return (z @ W.mT + noise * torch.linspace(0.4, 1.2, 8, dtype=torch.float64) + 3) * units


def test_factor_analysis_em_reaches_the_optimum_of_scikit_learn(rows: Tensor) -> None:
    theirs = Sklearn(2, tol=1e-12, max_iter=20000, svd_method="lapack").fit(rows.numpy())
    run = fit_em(FactorAnalysis(2), rows, tolerance=1e-12, max_iterations=5000)
    assert run.results["converged"]
    assert run.results["bound"] == pytest.approx(theirs.score(rows.numpy()), abs=1e-7)
    result: Any = run.model
    np.testing.assert_allclose(result.noise.detach(), theirs.noise_variance_, rtol=1e-3)
    shared = PPCA(2)  # one noise for all columns is less likely
    shared.maximize(rows)
    assert shared.log_evidence(rows).mean() < run.results["bound"] - 0.1


def test_factor_analysis_evidence_equals_scipy_with_missing_values(rows: Tensor) -> None:
    x = torch.where(torch.rand(rows.shape) < 0.3, torch.nan, rows)
    model = FactorAnalysis(2)
    model.initialize(x)
    covariance = (model.W @ model.W.mT + torch.diag(model.noise)).detach().numpy()
    for n in range(20):
        o = ~x[n].isnan().numpy()
        normal = scipy.stats.multivariate_normal(
            model.mu.detach().numpy()[o], covariance[np.ix_(o, o)]
        )
        expected = normal.logpdf(x[n].numpy()[o])
        assert model.log_evidence(x[n : n + 1]).item() == pytest.approx(expected, rel=1e-9)
    exact = model.log_evidence(x).sum().item()
    assert -Trace_ELBO().loss(model, ExactPosterior(model), x) == pytest.approx(exact, rel=1e-9)


@pytest.mark.slow
def test_factor_analysis_loses_little_to_values_missing_at_random(rows: Tensor) -> None:
    x = torch.where(torch.rand(rows.shape) < 0.2, torch.nan, rows)
    whole = fit_em(FactorAnalysis(2), rows, tolerance=1e-8)
    holed = fit_em(FactorAnalysis(2), load_data(x.numpy(), missing="keep"), tolerance=1e-10)
    result: Any = holed.model
    assert result.log_evidence(rows).mean().item() > whole.results["bound"] - 0.05
    result.log_evidence(x).mean().backward()
    assert max(p.grad.abs().max().item() for p in result.parameters()) < 1e-3


@pytest.mark.slow
def test_factor_analysis_is_invariant_to_column_units(rows: Tensor) -> None:
    """Multiplying columns shifts the log-likelihood by the logarithms, unlike in PPCA."""
    units = torch.logspace(-2, 2, 8)
    one = fit_em(FactorAnalysis(2, floor=1e-12), rows, tolerance=1e-12, max_iterations=5000)
    two = fit_em(FactorAnalysis(2, floor=1e-12), rows * units, tolerance=1e-12, max_iterations=5000)
    shift = units.log().sum().item()
    assert two.results["bound"] == pytest.approx(one.results["bound"] - shift, abs=1e-7)


def test_factor_analysis_degenerate_names_a_column_without_noise(rows: Tensor) -> None:
    model = FactorAnalysis(2)
    model.initialize(rows)
    assert model.degenerate(rows) is None
    state = model.em_state()
    state["noise"][5] = 0.0
    model.set_em_state(state)
    assert "column 5 has no noise left" in str(model.degenerate(rows))


def _one_factor(seed: int, N: int, P: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.8 * torch.randn(N, 1, generator=draw) + torch.randn(N, P, generator=draw)


@pytest.mark.slow
def test_factor_analysis_names_a_heywood_case_that_em_has_not_reached() -> None:
    x = _one_factor(2, 40, 5)
    run = fit_em(FactorAnalysis(2), x)
    model: Any = run.model
    assert model.noise[4] > 0.01 * x[:, 4].var()  # far from the floor
    assert "column 4 is a Heywood case" in run.results["degenerate"]
    assert "not converged after 1000 iterations, degenerate" in str(run)


def _with_gaps(x: Tensor, share: float) -> Tensor:
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < share
    missing[missing.all(1), 0] = False
    return torch.where(missing, torch.nan, x)


@pytest.mark.parametrize(
    ("rows_of", "share", "column"),
    [((2, 40, 5), 0.1, 4), ((3, 200, 6), 0.02, 1), ((2, 40, 5), 0.3, None)],
)
def test_factor_analysis_names_a_heywood_case_of_incomplete_rows(
    rows_of: tuple[int, int, int], share: float, column: int | None
) -> None:
    """A truncated Newton method ends at the same noises: a share of 0.02 in the third case."""
    x = _with_gaps(_one_factor(*rows_of), share)
    run = fit_em(FactorAnalysis(2), load_data(x.numpy(), missing="keep"), max_iterations=200)
    model: Any = run.model
    assert (model.noise > 0.05).all()  # far from the floor
    reason = run.results["degenerate"]
    assert reason is None if column is None else f"column {column} is a Heywood case" in reason


def test_factor_analysis_says_that_it_cannot_afford_to_find_heywood_cases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boundary, "MOST_PRODUCTS", 100)
    model, x = FactorAnalysis(2), _with_gaps(_one_factor(2, 40, 5), 0.3)
    model.initialize(x)
    with pytest.warns(UserWarning, match="40 rows have too many patterns of missing values"):
        assert model.degenerate(x) is None


def test_factor_analysis_likelihood_of_patterns_equals_that_of_rows() -> None:
    x, theta = _with_gaps(_one_factor(0, 300, 5), 0.1), FactorAnalysis(2, 5).em_state()
    theta["mu"], theta["noise"] = torch.arange(5.0), 1 + torch.arange(5.0)
    rows, weight = boundary._compressed(x)
    assert len(rows) < 100
    value = boundary._minus_twice_log_likelihood(theta, rows, weight)
    value = value + (~x.isnan()).sum() * np.log(2 * np.pi)
    assert value.item() == pytest.approx(-2 * log_evidence(theta, x).sum().item(), rel=1e-12)


def test_factor_analysis_does_not_call_an_interior_maximum_a_heywood_case() -> None:
    for x in (_one_factor(1, 60, 4), _one_factor(0, 100, 3)):
        run = fit_em(FactorAnalysis(2), x)
        assert run.results["degenerate"] is None
        assert "converged" not in str(run)
    z = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.tensor([0.03, 0.03, 0.5, 1.0, 1.0])  # a share of 0.001 is no boundary
    x = z + noise * torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    run = fit_em(FactorAnalysis(1), x, max_iterations=3)
    assert run.results["degenerate"] is None
    assert "not converged after 3 iterations>" in str(run)


def test_factor_analysis_degenerate_names_a_constant_column_in_large_units(rows: Tensor) -> None:
    """A small unit is no fault: noises and the floor are in it. Rounding of large values is."""
    units = torch.ones(8)
    units[3] = 8e-4 / rows[:, 3].std(correction=0)
    center = torch.zeros(8)
    for center[3], message in ((0.0, None), (1e4, "column 3 varies by no more than")):
        reason = fit_em(FactorAnalysis(1), rows * units + center).results["degenerate"]
        assert reason is None if message is None else str(reason).startswith(message)
    rows = torch.cat([rows, torch.ones(400, 1)], 1)
    reason = fit_em(FactorAnalysis(1), rows).results["degenerate"]
    assert reason == "column 8 is constant. Leave it out."
