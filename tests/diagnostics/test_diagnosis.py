"""The whole diagnosis: verdicts, table, JSON, restarts."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gaussian_pairs import mean_model
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from rich.console import Console
from torch import Tensor, nn

from ppl_lvm.core.console import progress
from ppl_lvm.diagnostics import DIAGNOSTICS
from ppl_lvm.diagnostics.base import Restarts
from ppl_lvm.diagnostics.diagnosis import Diagnosis, diagnose, eligible_restarts
from ppl_lvm.diagnostics.finding import VERDICTS, Finding
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

KEYS = {"question", "name", "value", "error", "threshold", "verdict", "remedy"}
TITLES = {d.slug: d.title for d in DIAGNOSTICS}


class Encoder(nn.Module):
    """The exact posterior of the linear model, its sd times `width`, as a trainable guide."""

    def __init__(self, linear: Any, width: float = 1.0) -> None:
        super().__init__()
        _, covariance = linear.posterior(torch.zeros(1, 5))
        W = linear.W.detach()
        self.mean = nn.Parameter(W @ covariance / linear.noise**2)
        self.root = nn.Parameter((width * torch.linalg.cholesky(covariance)).contiguous())

    def forward(self, x: Tensor) -> None:
        pyro.module("encoder", self)
        with pyro.plate("data", len(x), dim=-1):
            q = pyro.distributions.MultivariateNormal(x @ self.mean, scale_tril=self.root.tril())
            pyro.sample("z", q)


def flat_history() -> dict[str, list[float]]:
    return {"bound": list(np.random.default_rng(0).normal(-5, 0.1, 500))}


@pytest.fixture
def diagnosed(linear: Any) -> Callable[..., Any]:
    def run(width: float = 1.0, scale: float = 1.0, **options: Any) -> Any:
        pair = ModelGuidePair(linear, Encoder(linear, width), Trace_ELBO())
        x, y = linear.simulate(150, seed=11), scale * linear.simulate(150, seed=12)
        pair.materialize_parameters(x)
        return diagnose(
            pair,
            flat_history(),
            x,
            held_out=(y,),
            restarts=Restarts((-5.0, -5.01)),
            temperatures=20,
            **options,
        )

    return run


@pytest.mark.slow
def test_diagnosis_of_an_exact_fit_is_good(diagnosed: Callable[..., Any]) -> None:
    diagnosis = diagnosed()
    assert not [f for f in diagnosis.findings if f.verdict in ("warning", "bad")]
    assert not [f for f in diagnosis.findings if f.verdict == "unknown"]
    absent = {f.name for f in diagnosis.findings if f.verdict == "not applicable"}
    assert absent >= {TITLES["loo"], TITLES["mixtures"], TITLES["drift"]}
    assert diagnosis.worst == "good"
    rows = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert all(row.keys() >= KEYS for row in rows)
    assert "Is it calibrated?" in str(diagnosis)
    without_result = {"loo", "mixtures", "drift", "stability", "prior", "vsbc"}
    assert set(diagnosis.details) == set(TITLES) - without_result


@pytest.mark.slow
def test_diagnosis_of_a_narrow_guide_blames_the_guide(diagnosed: Callable[..., Any]) -> None:
    diagnosis = diagnosed(width=0.3)
    bad = {f.question for f in diagnosis.findings if f.verdict == "bad"}
    assert {"Is q a usable posterior?", "Is it calibrated?"} <= bad
    assert "Does it reproduce the data?" not in bad  # the model is right
    assert all(f.remedy for f in diagnosis.findings if f.verdict in ("bad", "warning"))


@pytest.mark.slow
def test_diagnosis_of_other_data_blames_the_model(diagnosed: Callable[..., Any]) -> None:
    diagnosis = diagnosed(scale=2.0)
    bad = {f.question for f in diagnosis.findings if f.verdict == "bad"}
    assert {"Does it reproduce the data?", "Whose fault is the gap?"} <= bad
    assert "Is it calibrated?" not in bad  # q is right


def test_diagnosis_of_global_latents_has_joint_rows() -> None:
    x = torch.randn(20)
    diagnosis = diagnose(_mean_pair(x), flat_history(), x, temperatures=20)
    by_name = {f.name: f for f in diagnosis.findings}
    assert by_name["joint Pareto k̂"].verdict in ("good", "exact")
    assert by_name["leave-one-out: share of rows with unreliable k̂"].verdict == "good"
    assert "does not read the data" in by_name[TITLES["calibration"]].why
    assert not [f for f in diagnosis.findings if f.verdict == "bad"]


@pytest.mark.slow
def test_failing_diagnostic_leaves_the_other_rows(linear: Any) -> None:
    pair = ModelGuidePair(linear, Encoder(linear), Trace_ELBO())
    x = linear.simulate(30)
    pair.materialize_parameters(x)
    diagnosis = diagnose(pair, {"bound": [0.0]}, x, temperatures=5)
    assert diagnosis.findings[0].verdict == "unknown"
    assert "1 steps" in diagnosis.findings[0].why
    assert len(diagnosis.findings) > 10


def _mean_pair(x: Tensor) -> ModelGuidePair:
    """`mean_model` with its posterior as a trainable guide."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.sample("mu", Normal(loc, (len(x) + 1) ** -0.5))

    pair = ModelGuidePair(mean_model, guide, Trace_ELBO())
    pair.materialize_parameters(x)
    with torch.no_grad():
        pair.unconstrained_parameters["store/loc"].copy_(x.sum() / (len(x) + 1))
    return pair


@pytest.mark.slow
def test_diagnosis_runs_custom_quantities_and_refits() -> None:
    x = torch.randn(60).sort().values  # sorted rows are not exchangeable
    quantities = {
        "trend": lambda d: d[:, 30:].mean((1, 2)) - d[:, :30].mean((1, 2)),
        "wrong": lambda d: d.mean(2),
    }
    pair = _mean_pair(x)
    diagnosis = diagnose(pair, flat_history(), x, temperatures=5, quantities=quantities, refits=20)
    rows = {f.name: f for f in diagnosis.findings}
    assert "must map data sets" in rows[TITLES["predictive"]].why
    assert rows["VSBC symmetry, p-value"].verdict == "good"
    del quantities["wrong"]
    diagnosis = diagnose(pair, flat_history(), x, temperatures=5, quantities=quantities)
    rows = {f.name: f for f in diagnosis.findings}
    worst = rows["predictive check: p-value of the worst test quantity"]
    assert worst.verdict == "bad"
    assert "trend" in worst.why
    with pytest.raises(ValueError, match="refits=3"):
        diagnose(pair, flat_history(), x, refits=3)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_a_narrow_terminal_and_explains_rows_that_are_not_good(width: int) -> None:
    long = "What follows from this, at some length, so that it has to be wrapped. "
    rows = tuple(
        Finding(
            question="Is it calibrated?",
            name=f"{v} row",
            value=0.5,
            error=0.1,
            threshold="good < 1",
            verdict=v,
            why=long,
            remedy="Do this.",
        )
        for v in VERDICTS
    )
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(Diagnosis(rows))
    lines = captured.get().splitlines()
    assert max(len(line) for line in lines) <= width
    assert lines[0].split("? ")[1].startswith("1 good, 1 warning, 1 bad")
    text = " ".join(" ".join(lines).split())
    assert text.count("good < 1") == 4  # not in the good row, and not in the last line
    assert text.count("at some length") == 5
    assert "Not applicable: not applicable row (What follows" in text
    assert len(lines) < 32
    assert "BAD bad row: 0.50 ± 0.10" in text
    assert "WARN warning row" in text


def test_progress_prints_the_slug_of_each_diagnostic(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as say:
        assert say is not None
        say("khat", 3, 13)
    assert "3/13 khat" in capsys.readouterr().err
    with progress(shown=False) as say:
        assert say is None


def test_eligible_restarts_are_neither_degenerate_nor_broken() -> None:
    entries: list[dict[str, Any]] = [
        {"bound": -1.0, "degenerate": None},
        {"bound": 9.0, "degenerate": "collapsed"},
        {"bound": None},
        {"bound": -0.5, "degenerate": None, "chosen": True},
    ]
    trajectories = [Trajectory() for _ in entries]
    restarts = eligible_restarts(entries, trajectories)
    assert restarts.bounds == (-1.0, -0.5)
    assert restarts.trajectories[1] is trajectories[3]
    assert restarts.chosen == 1
