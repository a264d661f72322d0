"""Gradient variance of the default objective and of Trace_ELBO."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pyro.infer import Trace_ELBO

from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.variance import EXACT, DirichletProcess, Subject, bundled, compare, exact
from ppl_lvm.estimators import ELBO, LeaveOneOut, ScoreFunction
from ppl_lvm.testing.exact_programs import EnumeratedSiteProgram


@pytest.fixture(autouse=True)
def _local() -> Iterator[None]:
    with local_parameters():
        yield


def verdict(subject: Subject, **how: Any) -> Any:
    return compare(subject, rounds=1, **how)["verdict"]


def slow(*pair: Any) -> Any:
    return pytest.param(*pair, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        ("BernoulliVAE", "AmortizedCategorical"),
        ("VAE", "AmortizedNormal"),
        slow("BernoulliVAE", "AmortizedJoint"),
        slow("GaussianMixture", "AmortizedCategorical"),
        slow("MixtureOfPPCA", "AmortizedCategorical"),
        slow("VAE", "SemiAmortized"),
        slow("FactorModel", "SemiAmortized"),
        slow("ProdLDA", "SemiAmortized"),
    ],
)
def test_default_of_a_pair_varies_no_more_than_trace_elbo(model: str, guide: str) -> None:
    assert verdict(bundled(model, guide), repeats=30) == ""


@pytest.mark.slow
@pytest.mark.parametrize("program", EXACT, ids=lambda p: p.__name__)
def test_default_varies_no_more_than_pyro_on_exact_programs(program: Callable[..., Any]) -> None:
    assert verdict(exact(program(4))) == ""


def test_objective_that_varies_more_is_noticed() -> None:
    """Deliberately wrong defaults: without a baseline."""
    subject = bundled("BernoulliVAE", "AmortizedCategorical")
    wrong = replace(subject, default=ScoreFunction(4), peer=LeaveOneOut(4))
    assert verdict(wrong, repeats=20) == "more variance"


@pytest.mark.slow
def test_closed_form_near_the_posterior_would_vary_more() -> None:
    """Deliberately wrong: the closed form of the KL for a guide that is refined per row."""
    subject = bundled("ProdLDA", "SemiAmortized")
    assert verdict(replace(subject, default=ELBO()), repeats=30) == "more variance"


@pytest.mark.parametrize("rows", [20, slow(200)])
def test_default_varies_less_than_half_of_trace_elbo_on_a_dirichlet_process(rows: int) -> None:
    subject = exact(DirichletProcess(rows))
    assert isinstance(subject.default, LeaveOneOut)
    assert isinstance(subject.peer, Trace_ELBO)
    row = compare(subject, repeats=30, rounds=1)
    assert row["variance"] + 5 * row["±"] < 0.5 * (row["peer's"] - 5 * row["± "])


def test_default_sums_out_sites_of_the_model_beside_draws_of_a_discrete_guide() -> None:
    assert isinstance(exact(EnumeratedSiteProgram(4)).default, LeaveOneOut)
