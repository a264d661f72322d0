"""The whole table: good on an exact fit, bad on a wrong one, and JSON with the named keys."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from rich.console import Console
from torch import Tensor, nn

from ppl_lvm.core.console import progress
from ppl_lvm.diagnostics.budget import evenly_spaced_rows
from ppl_lvm.diagnostics.diagnosis import NAMES, Diagnosis, Restarts, diagnose, eligible_restarts
from ppl_lvm.diagnostics.finding import VERDICTS, Finding
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.trajectory import Trajectory

KEYS = {"question", "name", "value", "error", "threshold", "verdict", "remedy"}


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
    def run(width: float = 1.0, scale: float = 1.0, **more: Any) -> Any:
        pair = ModelGuidePair(linear, Encoder(linear, width), Trace_ELBO())
        x, y = linear.simulate(150, seed=11), scale * linear.simulate(150, seed=12)
        pair.materialize_parameters(x)
        return diagnose(
            pair,
            flat_history(),
            x,
            held_out=(y,),
            starts=Restarts((-5.0, -5.01)),
            temperatures=20,
            **more,
        )

    return run


@pytest.mark.slow
def test_exact_fit_is_good_throughout(diagnosed: Callable[..., Any]) -> None:
    found = diagnosed()
    assert not [f for f in found.findings if f.verdict in ("warning", "bad")]
    silent = {f.name for f in found.findings if f.verdict == "unknown"}
    assert silent == {NAMES["loo"], NAMES["mixtures"], NAMES["drift"]}
    assert found.worst == "good"
    rows = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert all(row.keys() >= KEYS for row in rows)
    assert "Is it calibrated?" in str(found)
    silent = {"loo", "mixtures", "drift", "stability", "prior", "vsbc"}
    assert set(found.details) == set(NAMES) - silent


@pytest.mark.slow
def test_narrow_guide_is_bad_where_it_should_be(diagnosed: Callable[..., Any]) -> None:
    found = diagnosed(width=0.3)
    bad = {f.question for f in found.findings if f.verdict == "bad"}
    assert {"Is q a usable posterior?", "Is it calibrated?"} <= bad
    assert "Does it reproduce the data?" not in bad  # the model is right
    assert all(f.remedy for f in found.findings if f.verdict in ("bad", "warning"))


@pytest.mark.slow
def test_other_data_are_bad_where_they_should_be(diagnosed: Callable[..., Any]) -> None:
    found = diagnosed(scale=2.0)
    bad = {f.question for f in found.findings if f.verdict == "bad"}
    assert {"Does it reproduce the data?", "Whose fault is the gap?"} <= bad
    assert "Is it calibrated?" not in bad  # q is right


def test_global_latents_are_diagnosed_as_one_row() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0), obs=x)

    x = torch.randn(20)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.sample("mu", Normal(loc, 21**-0.5))

    pair = ModelGuidePair(model, guide, Trace_ELBO())
    pair.materialize_parameters(x)
    with torch.no_grad():
        pair.unconstrained_parameters["store/loc"].copy_(x.sum() / 21)
    found = diagnose(pair, flat_history(), x, temperatures=20)
    by_name = {f.name: f for f in found.findings}
    assert by_name["joint Pareto k̂"].verdict == "good"
    assert by_name["leave-one-out: share of data with unreliable k̂"].verdict == "good"
    assert "does not read the data" in by_name[NAMES["calibration"]].why
    assert not [f for f in found.findings if f.verdict == "bad"]


def test_broken_question_costs_no_other_row(linear: Any) -> None:
    pair = ModelGuidePair(linear, Encoder(linear), Trace_ELBO())
    x = linear.simulate(30)
    pair.materialize_parameters(x)
    found = diagnose(pair, {"bound": [0.0]}, x, temperatures=5)
    assert found.findings[0].verdict == "unknown"
    assert "1 steps" in found.findings[0].why
    assert len(found.findings) > 10


def _mean_pair(x: Tensor) -> ModelGuidePair:
    """mu ~ N(0, 1), x_n ~ N(mu, 1), with its posterior."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.sample("mu", Normal(loc, (len(x) + 1) ** -0.5))

    pair = ModelGuidePair(model, guide, Trace_ELBO())
    pair.materialize_parameters(x)
    with torch.no_grad():
        pair.unconstrained_parameters["store/loc"].copy_(x.sum() / (len(x) + 1))
    return pair


@pytest.mark.slow
def test_own_quantities_and_refits_are_asked_for() -> None:
    x = torch.randn(60).sort().values  # sorted rows are no exchangeable ones
    own = {
        "trend": lambda d: d[:, 30:].mean((1, 2)) - d[:, :30].mean((1, 2)),
        "wrong": lambda d: d.mean(2),
    }
    pair = _mean_pair(x)
    found = diagnose(pair, flat_history(), x, temperatures=5, quantities=own, refits=20)
    rows = {f.name: f for f in found.findings}
    assert "must map data sets" in rows[NAMES["predictive"]].why
    assert rows["VSBC symmetry, p-value"].verdict == "good"
    del own["wrong"]
    found = diagnose(pair, flat_history(), x, temperatures=5, quantities=own)
    rows = {f.name: f for f in found.findings}
    worst = rows["predictive check: p-value of the worst test quantity"]
    assert worst.verdict == "bad"
    assert "trend" in worst.why
    with pytest.raises(ValueError, match="refits=3"):
        diagnose(pair, flat_history(), x, refits=3)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_a_narrow_terminal_and_says_most_where_it_matters(width: int) -> None:
    long = "What follows from this, at some length, so that it has to be wrapped. "
    rows = tuple(
        Finding("Is it calibrated?", f"{v} figure", 0.5, 0.1, "good < 1", "", v, long, "Do this.")
        for v in VERDICTS
    )
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(Diagnosis(rows))
    lines = captured.get().splitlines()
    assert max(len(line) for line in lines) <= width
    assert lines[0].split("? ")[1].startswith("1 good, 1 look, 1 bad")
    text = " ".join(" ".join(lines).split())
    assert text.count("at some length") == text.count("good < 1") == 3  # not where it is good
    assert len(lines) < 25
    assert "BAD bad figure: 0.50 ± 0.10" in text


def test_progress_says_each_name(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as say:
        assert say is not None
        say("khat", 3, 13)
    assert "3/13 khat" in capsys.readouterr().err
    with progress(shown=False) as say:
        assert say is None


def test_figures_are_printed_with_as_many_digits_as_their_error_allows() -> None:
    row = Finding("q", "n", 1.23456, 0.0123, "", "", "good", "", "")
    assert row.figure == "1.235 ± 0.012"
    assert Finding("q", "n", None, None, "", "", "unknown", "", "").figure == "–"
    infinite = Finding("q", "n", float("-inf"), float("nan"), "", "", "good", "", "")
    assert infinite.to_dict()["value"] is None
    assert infinite.to_dict()["error"] is None


def test_rows_are_spread_and_restarts_sifted() -> None:
    x, y = torch.arange(100), torch.arange(100) * 2
    some_x, some_y = evenly_spaced_rows((x, y), 10)
    assert some_x.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    torch.testing.assert_close(some_y, 2 * some_x)
    entries: list[dict[str, Any]] = [
        {"bound": -1.0, "degenerate": None},
        {"bound": 9.0, "degenerate": "collapsed"},
        {"bound": None},
        {"bound": -0.5, "degenerate": None, "chosen": True},
    ]
    trails = [Trajectory() for _ in entries]
    found = eligible_restarts(entries, trails)
    assert found.bounds == (-1.0, -0.5)
    assert found.trajectories[1] is trails[3]
    assert found.chosen == 1
