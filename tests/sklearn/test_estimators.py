"""Estimators equal scikit-learn's own, and work in its tools."""

import pickle
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.utils.estimator_checks import check_estimator

from ppl_lvm import models
from ppl_lvm.sklearn import (
    EXPECTED_FAILED_CHECKS,
    PPCA,
    VAE,
    BayesianGaussianMixture,
    FactorAnalysis,
    GaussianHMM,
    GaussianMixture,
    LatentVariableModel,
    MixtureOfPPCA,
)

IRIS, LABELS = load_iris(return_X_y=True)
WINE = scale(load_wine().data)
EM = [GaussianMixture, PPCA, FactorAnalysis, MixtureOfPPCA, GaussianHMM]
GRADIENT = [
    LatentVariableModel(models.GaussianMixture, settings={"components": 2}, max_iter=10),
    VAE(1, max_iter=10, hidden_layer_sizes=(4,), n_particles=5),
    BayesianGaussianMixture(2, max_iter=10, n_particles=5),
]


def _failures(estimator: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            estimator,
            expected_failed_checks=EXPECTED_FAILED_CHECKS.get(type(estimator).__name__),
            on_skip=None,
            on_fail=None,
        )
    return [f"{r['check_name']}: {r['exception']}" for r in results if r["status"] == "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", EM)
def test_estimator_by_em_passes_scikit_learns_checks(kind: Any) -> None:
    assert _failures(kind()) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("estimator", GRADIENT, ids=lambda e: type(e).__name__)
def test_estimator_by_gradient_steps_passes_scikit_learns_checks(estimator: Any) -> None:
    assert _failures(estimator) == []


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_mixture_equals_scikit_learns_from_the_same_start(kind: str) -> None:
    precisions: Any = {
        "full": np.stack([np.eye(4)] * 3),
        "tied": np.eye(4),
        "diag": np.ones((3, 4)),
        "spherical": np.ones(3),
    }[kind]
    start = {
        "weights_init": np.ones(3) / 3,
        "means_init": IRIS[[0, 60, 120]],
        "precisions_init": precisions,
    }
    ours = GaussianMixture(3, covariance_type=kind, tol=1e-10, **start).fit(IRIS)
    theirs = SklearnMixture(
        3, covariance_type=kind, tol=1e-11, max_iter=5000, reg_covar=1e-9, **start
    ).fit(IRIS)
    assert ours.score(IRIS) == pytest.approx(theirs.score(IRIS), abs=1e-7)
    np.testing.assert_allclose(ours.weights_, theirs.weights_, atol=1e-4)
    np.testing.assert_allclose(ours.means_, theirs.means_, atol=1e-4)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_, atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(IRIS), theirs.predict_proba(IRIS), atol=1e-3)
    assert ours.bic(IRIS) == pytest.approx(theirs.bic(IRIS), abs=1e-4)
    assert ours.aic(IRIS) == pytest.approx(theirs.aic(IRIS), abs=1e-4)


def test_ppca_equals_scikit_learns_pca() -> None:
    ours, theirs = PPCA(2).fit(IRIS), PCA(2).fit(IRIS)
    np.testing.assert_allclose(ours.components_, theirs.components_, atol=1e-12)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_)
    assert ours.noise_variance_ == pytest.approx(theirs.noise_variance_)
    np.testing.assert_allclose(ours.score_samples(IRIS), theirs.score_samples(IRIS), atol=1e-10)
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), atol=1e-12)
    shrunken = (1 - theirs.noise_variance_ / theirs.explained_variance_) ** 0.5
    codes = theirs.transform(IRIS) / theirs.explained_variance_**0.5 * shrunken
    np.testing.assert_allclose(ours.transform(IRIS), codes, atol=1e-10)


def test_ppca_by_em_with_missing_values_nears_that_of_complete_rows() -> None:
    holes = IRIS.copy()
    holes[0, 0] = np.nan
    a, b = PPCA(2, correction=0).fit(holes), PPCA(2, correction=0).fit(IRIS)
    np.testing.assert_allclose(a.get_covariance(), b.get_covariance(), atol=0.02)
    assert a.transform(holes).shape == (150, 2)


def test_factor_analysis_equals_scikit_learns() -> None:
    ours = FactorAnalysis(2).fit(WINE)
    theirs = SklearnFactorAnalysis(2, tol=1e-9, max_iter=10_000).fit(WINE)
    assert ours.score(WINE) >= theirs.score(WINE)
    assert ours.score(WINE) == pytest.approx(theirs.score(WINE), abs=1e-5)
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), atol=5e-3)


@pytest.mark.parametrize("estimator", [PPCA(2), FactorAnalysis(2), GaussianMixture(1)])
def test_weights_equal_repeated_rows(estimator: Any) -> None:
    weights = np.arange(len(WINE)) % 3
    repeated = clone(estimator).fit(np.repeat(WINE, weights, axis=0))
    weighted = clone(estimator).fit(WINE, sample_weight=weights)
    np.testing.assert_allclose(
        weighted.score_samples(WINE), repeated.score_samples(WINE), atol=1e-5
    )


@pytest.mark.parametrize(
    ("estimator", "rows"), [(PPCA(2), WINE), (MixtureOfPPCA(2, n_directions=2), WINE)]
)
def test_bic_counts_the_dimensions_of_the_likelihoods_maximum(estimator: Any, rows: Any) -> None:
    fitted = clone(estimator).set_params(random_state=0).fit(rows)
    K, D, P = (1, 2, 13) if isinstance(estimator, PPCA) else (2, 2, 13)
    count = K - 1 + K * (P + P * D - 1 + 1)
    log_likelihood = fitted.score(rows) * len(rows)
    assert fitted.bic(rows) == pytest.approx(count * np.log(len(rows)) - 2 * log_likelihood)
    assert fitted.aic(rows) == pytest.approx(count * 2 - 2 * log_likelihood)


def test_estimators_work_in_scikit_learns_tools() -> None:
    frame = pd.DataFrame(IRIS, columns=["a", "b", "c", "d"])
    columns = ColumnTransformer([("codes", PPCA(1), ["a", "b"]), ("rest", "passthrough", ["c"])])
    columns.set_output(transform="pandas")
    table = columns.fit_transform(frame)
    assert list(table.columns) == ["codes__ppca0", "rest__c"]
    pipeline = make_pipeline(StandardScaler(), PPCA(2), LogisticRegression())
    assert cross_val_score(pipeline, IRIS, LABELS, cv=3).mean() > 0.85
    search = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 3]}, cv=3)
    assert search.fit(frame.sample(frac=1, random_state=0)).best_params_ == {"n_components": 3}
    assert search.best_estimator_.run_.record["data"]["columns"] == ["a", "b", "c", "d"]


def test_polars_output_has_names_of_features() -> None:
    pl = pytest.importorskip("polars")
    table = PPCA(2).set_output(transform="polars").fit_transform(pl.DataFrame(IRIS))
    assert isinstance(table, pl.DataFrame)
    assert table.columns == ["ppca0", "ppca1"]


@pytest.mark.parametrize("estimator", [GaussianMixture(2, random_state=0), PPCA(1, random_state=0)])
def test_pickled_estimator_answers_alike_and_holds_no_rows(estimator: Any, tmp_path: Any) -> None:
    estimator = clone(estimator).fit(IRIS)
    joblib.dump(estimator, tmp_path / "estimator")
    for copy in (pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator")):
        np.testing.assert_array_equal(copy.transform(IRIS), estimator.transform(IRIS))
        np.testing.assert_array_equal(copy.sample(5)[0], estimator.sample(5)[0])
        assert copy.run_.training_data is None
    assert estimator.run_.training_data is not None


def test_hidden_markov_model_recovers_states_of_several_sequences() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 0, 1], 50)
    X = np.where(truth, 3.0, 0.0)[:, None] + random.standard_normal((200, 1))
    lengths = [120, 80]
    fitted = GaussianHMM(2, random_state=0).fit(X, lengths=lengths)
    states = fitted.predict(X, lengths)
    assert max((states == truth).mean(), (states != truth).mean()) > 0.95
    x = torch.from_numpy(X)
    with torch.no_grad():
        exact = sum(float(fitted.run_.model.log_evidence(p[None])) for p in x.split(lengths))
    assert fitted.score_samples(X, lengths).sum() == pytest.approx(exact)
    assert fitted.score(X, lengths=lengths) == pytest.approx(exact / 200)
    assert fitted.bic(X) == pytest.approx(7 * np.log(200) - 2 * fitted.score_samples(X).sum())
    rows, drawn = fitted.sample(500)
    assert rows.shape == (500, 1)
    assert set(drawn) == {0, 1}
    with pytest.raises(ValueError, match=r"lengths: .* add up to 100 steps, and X has 200"):
        fitted.predict(X, [50, 50])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_any_pair_is_an_estimator_of_its_codes_and_classes() -> None:
    X = np.concatenate([IRIS[:50], IRIS[100:]])
    fitted = LatentVariableModel(
        models.GaussianMixture, settings={"components": 2}, max_iter=500, random_state=0
    ).fit(X)
    exact = GaussianMixture(2, random_state=0).fit(X)
    assert fitted.score(X) == pytest.approx(exact.score(X), abs=0.05)
    assert not hasattr(LatentVariableModel(models.PPCA(1)), "predict")
    labels = fitted.predict(X)
    np.testing.assert_array_equal(labels, fitted.predict_proba(X).argmax(1))
    assert len(set(labels[:50])) == len(set(labels[50:])) == 1
    codes = LatentVariableModel(models.PPCA(1), max_iter=300, random_state=0).fit(X)
    assert not hasattr(codes, "predict")
    assert codes.transform(X).shape == (100, 1)
    assert codes.inverse_transform(codes.transform(X)).shape == X.shape
    assert codes.sample(7).shape == (7, 4)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (GaussianMixture(2, means_init=np.zeros((3, 4))), r"means_init: shape \(3, 4\)"),
        (GaussianMixture(2, covariance_type="odd"), "odd"),
        (PPCA(5), r"n_components=5: X has 4 columns"),
    ],
)
def test_unusable_parameters_are_refused_by_name(estimator: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        estimator.fit(IRIS)
    assert all("ppl_lvm/sklearn" not in str(entry.path) for entry in caught.traceback)


def test_normal_density_is_that_of_one_component() -> None:
    x = np.array([[-1.0], [0.0], [3.0]])
    fitted = GaussianMixture(1).fit(x)
    exact = norm(x.mean(), x.std()).logpdf(x[:, 0])
    np.testing.assert_allclose(fitted.score_samples(x), exact, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fits_of_other_widths_follow_each_other() -> None:
    """A fit leaves no parameters in Pyro's store."""
    for columns in (3, 2):
        rows = IRIS[::10, :columns]
        fitted = BayesianGaussianMixture(2, max_iter=5, n_particles=5, random_state=0).fit(rows)
        assert fitted.means_.shape == (2, columns)
        assert fitted.predict_proba(rows).shape == (15, 2)
    assert not list(pyro.get_param_store().keys())
