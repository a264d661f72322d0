"""Every bundled model meets the contract of models."""

import importlib
from functools import partial
from typing import Any

import pytest

from ppl_lvm.models.parts.examples import example_rows, example_sequences
from ppl_lvm.testing import check_model

models: Any = importlib.import_module("ppl_lvm.models")


def checked(name: str, batch: Any = None, **settings: Any) -> None:
    model = getattr(models, name)
    check_model(
        partial(model, **settings),
        model.example_batch() if batch is None else batch,
        exact_log_evidence=getattr(model, "log_evidence", None)
        or getattr(model, "log_likelihood", None),
        exact_posterior=getattr(model, "posterior", None),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", models.__all__)
def test_model_meets_the_contract(name: str) -> None:
    checked(name)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("GaussianMixture", {"covariance": "tied"}),
        pytest.param("GaussianMixture", {"covariance": "diag"}, marks=pytest.mark.slow),
        pytest.param("GaussianMixture", {"covariance": "spherical"}, marks=pytest.mark.slow),
        ("GaussianMixture", {"components": 1}),
        ("BayesianGaussianMixture", {"covariance": "diag"}),
        ("FactorModel", {"likelihood": "negative-binomial"}),
        pytest.param("HierarchicalRegression", {"centered": True}, marks=pytest.mark.slow),
        pytest.param("RandomEffects", {"centered": True}, marks=pytest.mark.slow),
        pytest.param("NormalizingFlow", {"scalar": "affine"}, marks=pytest.mark.slow),
        ("VAE", {"prior": "flow(layers=2)"}),
        ("VAE", {"likelihood": "categorical", "categories": 2}),
    ],
)
def test_model_meets_the_contract_with_other_settings(name: str, settings: dict[str, Any]) -> None:
    checked(name, **settings)


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian-shared"])
def test_vae_meets_the_contract_with_gaussian_likelihoods(likelihood: str) -> None:
    checked("VAE", example_rows(), likelihood=likelihood)


def test_hmm_meets_the_contract_with_categorical_emissions() -> None:
    (x,) = example_sequences()
    categories = (x.clamp(-1, 1) + 1).round()
    checked("HiddenMarkovModel", categories, emission="categorical", categories=3)
