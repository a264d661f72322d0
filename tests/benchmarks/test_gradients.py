"""Benchmark of gradient estimators: verdicts on known and user pairs."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppl_lvm.benchmarks import gradients
from ppl_lvm.benchmarks.gradient_suite import exact, samples, subjects
from ppl_lvm.benchmarks.gradient_suite.implementations import BOUNDS, Implementation, ours
from ppl_lvm.benchmarks.gradient_suite.programs import KNOWN, handwritten_parameters
from ppl_lvm.benchmarks.gradient_suite.subjects import known_subject
from ppl_lvm.benchmarks.harness import Result
from ppl_lvm.testing.expectations import double_precision


@pytest.fixture(scope="module")
def result(smoke: Callable[[str], tuple[Result, Path]]) -> Result:
    return smoke("gradients")[0]


def row(result: Result, program: str, by: str, estimator: str) -> dict[str, object]:
    return next(
        r
        for r in result["rows"]
        if (r["program"], r["by"], r["estimator"]) == (program, by, estimator)
    )


@pytest.mark.slow
def test_gradient_verdicts_on_belief_net(result: Result) -> None:
    for ours_ in ("VIMCO", "LeaveOneOut", "Renyi", "ScoreFunction"):
        good = row(result, "belief_net", "ppl_lvm", ours_)
        assert good["verdict"] == "unbiased"
        assert good["bias guide"] < 1e-9  # type: ignore[operator]
    renyi = row(result, "belief_net", "Pyro", "RenyiELBO(0)")
    assert renyi["verdict"] == "zero gradient at site z; not a bound under subsampling"
    half = row(result, "belief_net", "Pyro", "RenyiELBO(0.5)")
    assert "biased by" in str(half["verdict"])
    assert row(result, "belief_net", "ppl_lvm", "IWAE")["verdict"] == (
        "rejects this pair: use VIMCO"
    )


@pytest.mark.slow
def test_gradient_verdict_names_discrete_site_of_mixed_guide(result: Result) -> None:
    assert "zero gradient at site c" in str(
        row(result, "decoders", "Pyro", "RenyiELBO(0)")["verdict"]
    )
    assert row(result, "decoders", "ppl_lvm", "VIMCO")["verdict"] == "unbiased"


@pytest.mark.slow
def test_our_biased_estimators_declare_their_bias(result: Result) -> None:
    for row in result["rows"]:
        if row["by"] == "ppl_lvm" and "biased by" in row["verdict"]:
            assert "declared" in row["verdict"], row


def test_enumerated_draws_have_the_exact_mean() -> None:
    """The sum over enumerated draws equals the gradient of the sum over a table."""
    with double_precision(), samples.local_parameters():
        subject = known_subject(KNOWN["belief_net"], 2, 0)
        with subject.pair.scope():
            for implementation in ours(subject.pair, 2):
                if implementation.estimator == "LeaveOneOut":
                    exact_mean = subject.exact_mean(implementation)
            assert exact_mean is not None
            params = handwritten_parameters(subject.pair.unconstrained_parameters)
            elbo = KNOWN["belief_net"].expected(params, subject.batch[0], BOUNDS["ELBO"], 1)
            expected = exact.gradients(elbo, list(subject.pair.unconstrained_parameters.values()))
    torch.testing.assert_close(exact_mean[0], expected)
    assert exact_mean[1] == pytest.approx(elbo.sum().item())


@pytest.mark.parametrize("known", KNOWN)
def test_exact_bounds_increase_to_evidence(known: str) -> None:
    """ELBO = IWAE_1 ≤ IWAE_2 ≤ log p(x), by the exact sums of the targets."""
    with double_precision():
        program = KNOWN[known]
        params, x = program.parameters(0), program.data(1)
        one, two = (program.expected(params, x, BOUNDS["IWAE"], K) for K in (1, 2))
        torch.testing.assert_close(
            one, program.expected(params, x, BOUNDS["ELBO"], 2), rtol=1e-6, atol=1e-6
        )
        assert (one < two).all()
        assert (two < program.module.log_evidence(params, x)).all()


def test_judge_detects_bias_beyond_standard_errors() -> None:
    torch.manual_seed(0)
    draws, exact_mean = torch.randn(1000, 3), torch.zeros(3)
    assert not samples.judge(draws, None, exact_mean + 1e-3).biased
    assert samples.judge(draws, None, exact_mean + 0.2).biased
    zero = samples.judge(torch.zeros(10, 3), None, torch.ones(3))
    assert zero.zero
    assert zero.biased
    assert not samples.judge(draws, exact_mean + 0.2, exact_mean + 0.2).biased
    assert samples.judge(draws, exact_mean + 0.2, exact_mean + 0.21).biased


def test_judge_includes_errors_of_estimated_target() -> None:
    torch.manual_seed(0)
    draws, reference = torch.randn(1000, 3), torch.randn(20, 3)
    assert not samples.judge(draws, None, reference.mean(0), reference).biased
    assert samples.judge(draws, None, reference.mean(0)).biased  # wrong: treated as exact


def test_judge_of_many_parameters_with_rare_gradients() -> None:
    torch.manual_seed(0)
    rare = torch.rand(30, 2000) < 0.05
    draws = rare * 20.0 * torch.rand(30, 2000)  # mean 0.5
    assert not samples.judge(draws, None, torch.full((2000,), 0.5)).biased
    assert samples.judge(draws, None, torch.full((2000,), 0.7)).biased


def test_groups_are_the_sites_of_a_hierarchical_guide() -> None:
    with samples.local_parameters():
        subject = known_subject(KNOWN["decoders"], 2, 0)
        pair = subject.pair
        with pair.scope():
            groups = samples.groups(
                pair.model, pair.guide, subject.batch, pair.unconstrained_parameters
            )
    assert set(groups) == {"model", "guide c", "guide z"}
    sizes = {name: len(positions) for name, positions in groups.items()}
    assert sizes["guide c"] == 3 * 2 + 3  # a weight and a bias of three categories


USER = """
import pyro, torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.nn import PyroModule
from torch import nn


class Model(PyroModule):
    def __init__(self, components=2):
        super().__init__()
        self.means = nn.Parameter(torch.linspace(-1, 1, components))

    def forward(self, x):
        means = self.means
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(logits=torch.zeros(len(means))))
            pyro.sample("x", Normal(means[c].unsqueeze(-1), 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self, components=2):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5], [-0.5]]))

    def forward(self, x):
        weight = self.weight
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", Categorical(logits=x @ weight.T))
"""


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Restrict the benchmark to these estimators; the smoke run covers all."""

    def choose(*names: str) -> None:
        def few(every: Callable[..., Iterable[Implementation]], *arguments: Any) -> Any:
            return (each for each in every(*arguments) if each.estimator in names)

        for hand in ("ours", "pyros"):
            monkeypatch.setattr(subjects, hand, partial(few, getattr(subjects, hand)))

    return choose


@pytest.mark.slow
def test_gradients_on_user_pair(tmp_path: Path, only: Callable[..., None]) -> None:
    only("VIMCO", "LeaveOneOut", "RenyiELBO(0)")
    (tmp_path / "mine.py").write_text(USER)
    rows = np.random.default_rng(0).normal(size=(30, 1))
    np.savetxt(tmp_path / "x.csv", rows, header="a", comments="", delimiter=",")
    mine = tmp_path / "mine.py"
    result = gradients.run(
        smoke=True,
        directory=tmp_path,
        model=f"{mine}:Model",
        guide=f"{mine}:Guide",
        data=str(tmp_path / "x.csv"),
        rows=5,
    )
    assert row(result, "Model", "ppl_lvm", "VIMCO")["verdict"] == "unbiased"
    assert "zero gradient at site c" in str(row(result, "Model", "Pyro", "RenyiELBO(0)")["verdict"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_gradients_on_enumerated_model(tmp_path: Path, only: Callable[..., None]) -> None:
    """The KeyError of Pyro's mean-field bound is reported as a rejection."""
    only("ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
    result = gradients.run(
        smoke=True,
        directory=tmp_path,
        model="ppl_lvm.models.gmm:GaussianMixture",
        data="iris",
        rows=5,
    )
    verdicts = {(r["by"], r["estimator"]): r["verdict"] for r in result["rows"]}
    assert verdicts["Pyro", "TraceMeanField_ELBO"].startswith("rejects")
    assert verdicts["ppl_lvm", "ELBO"] == "unbiased"
    assert verdicts["Pyro", "TraceEnum_ELBO"] == "unbiased"


def test_gradients_of_user_pair_require_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data"):
        gradients.run(model="mine.py:Model", directory=tmp_path)


def test_gradient_verdict_reports_too_few_draws() -> None:
    with double_precision(), samples.local_parameters():
        subject = known_subject(KNOWN["belief_net"], 2, 0)
        implementation = next(i for i in ours(subject.pair, 2) if i.estimator == "VIMCO")
    good = samples.Judgment(0.01, 0.02, False, 1.0, 1.0, False)
    coarse = replace(good, bias=0.84, error=1.3)
    assert gradients.verdict(implementation, {"model": good}) == "unbiased"
    assert "too few draws" in gradients.verdict(implementation, {"model": good, "guide z": coarse})
    assert "biased by 84%" in gradients.verdict(implementation, {"g": replace(coarse, biased=True)})
