"""Every bundled model meets the contract of models."""

import importlib
from typing import Any

import pytest

from ppl_lvm.testing import check_model

models: Any = importlib.import_module("ppl_lvm.models")


@pytest.mark.parametrize("name", models.__all__)
def test_model_meets_the_contract(name: str) -> None:
    model = getattr(models, name)
    evidence = getattr(model, "log_evidence", None) or getattr(model, "log_likelihood", None)
    check_model(
        model,
        model.example_batch(),
        exact_log_evidence=evidence,
        exact_posterior=getattr(model, "posterior", None),
    )
