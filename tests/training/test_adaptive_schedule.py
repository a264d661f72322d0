"""Adaptive learning rates and the end of training."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm import fit, load_run
from ppl_lvm.training.adaptive_schedule import AdaptiveSchedule
from ppl_lvm.training.arrival import describe_arrival
from ppl_lvm.training.extrapolation import power_law_remaining_gain, remaining_gain

pytestmark = pytest.mark.usefixtures("no_figures")

PRIOR_SD, SD = 10.0, 0.5
X = torch.randn(200, generator=torch.Generator().manual_seed(3)) * SD + 2


class MeanModel(PyroModule):
    """mu ~ N(0, 10²), x_n ~ N(mu, .5²)."""

    def forward(self, x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, PRIOR_SD))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(mu, SD), obs=x)


def log_evidence(x: Tensor) -> float:
    """log p(x) in nats per row; AutoNormal's bound reaches it."""
    x = x.double()
    covariance = SD**2 * torch.eye(len(x)) + PRIOR_SD**2 * torch.ones(len(x), len(x))
    joint = torch.distributions.MultivariateNormal(torch.zeros(len(x)), covariance.double())
    return float(joint.log_prob(x)) / len(x)


def fit_mean(**options: Any) -> Any:
    return fit(
        MeanModel, None, X, **{"method": "svi", "engine": "captured", "progress": False, **options}
    )


@pytest.mark.parametrize("batch_size", [None, 20])
def test_fit_stops_at_the_exact_bound(batch_size: int | None) -> None:
    run = fit_mean(batch_size=batch_size, optimizer="Adam(lr=0.05)")
    assert run.results["converged"]
    assert run.results["steps"] < 10_000
    gap = log_evidence(X) - run.results["bound"]
    assert gap < 0.01 + 5 * run.results["bound_monte_carlo_error"]
    assert abs(run.results["predicted_gain"]) <= 0.01


@pytest.mark.slow
def test_falling_rates_gain_the_share_of_the_bound_that_noise_costs() -> None:
    options: dict[str, Any] = {"batch_size": 5, "optimizer": "Adam(lr=1.0)", "num_steps": 1500}
    adaptive, constant = fit_mean(**options), fit_mean(**options, accuracy=0)
    exact = log_evidence(X)
    assert exact - adaptive.results["bound"] < 0.01
    assert exact - constant.results["bound"] > 5 * (exact - adaptive.results["bound"])


def test_limit_that_stops_an_improving_fit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    far = fit(
        MeanModel, None, X + 100, method="svi", progress=False, num_steps=600, engine="captured"
    )
    assert far.results["converged"] is False
    assert far.results["predicted_gain"] > 1
    line = caplog.messages[-1]
    assert line.startswith("Not converged after 600 steps. More steps would add about")
    assert "mu_loc moves as fast as the learning rate allows" in line
    assert line == describe_arrival(far.results)
    assert "not converged" in repr(far)


def test_last_line_names_the_gain_of_a_converged_fit(capsys: pytest.CaptureFixture[str]) -> None:
    fit_mean(progress=True, optimizer="Adam(lr=0.05)")
    assert capsys.readouterr().err.splitlines()[-1].startswith("Converged after ")


def test_fixed_rates_predict_from_the_trend(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = fit_mean(num_steps=300)
    assert run.results["steps"] == 300
    assert run.results["converged"] is False
    assert caplog.messages[-1].startswith("Not converged after 300 steps")
    few = fit_mean(num_steps=50).results
    assert few["converged"] is few["predicted_gain"] is None
    assert "50 steps are too few to predict what more would gain" in few["remedy"]


def planned(limit: int) -> list[tuple[int, int]]:
    """(begin, end) of all branches under a limit."""
    schedule = AdaptiveSchedule.__new__(AdaptiveSchedule)
    options = SimpleNamespace(options=SimpleNamespace(num_steps=limit))
    rates = SimpleNamespace(plan=lambda constant, decay: None)
    vars(schedule).update(training=options, rates=rates, branch_end=0)
    vars(schedule).update(_trunk_steps=0, _extension=0)
    schedule._plan(200)
    branches = [(schedule.branch_begin, schedule.branch_end)]
    while schedule.branch_end < limit:
        schedule._plan(2 * schedule._trunk_steps)
        branches.append((schedule.branch_begin, schedule.branch_end))
    return branches


def test_branches_of_a_small_limit_lose_few_steps() -> None:
    assert planned(1800) == [(200, 300), (500, 600), (1480, 1800)]
    assert planned(10_000)[:5] == [(200, 300), (500, 600), (1000, 1200), (2000, 2400), (4000, 4800)]
    for limit in range(600, 12_000, 100):
        *early, last = planned(limit)
        assert last[1] == limit
        lost = sum(end - begin for begin, end in early)
        assert lost <= limit / 6 or len(early) == 1


@pytest.mark.slow
def test_schedule_and_patience_decide_instead_of_the_accuracy() -> None:
    run = fit_mean(num_steps=700, schedule="CosineAnnealingLR(T_max=700)")
    assert run.results["steps"] == 700
    assert fit_mean(num_steps=700, accuracy=0).results["steps"] == 700


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stop", [150, *(pytest.param(stop, marks=SLOW) for stop in (250, 450, 700))]
)
def test_resumed_fit_equals_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 20, "num_steps": 900, "accuracy": 1e-5}
    whole = fit_mean(**options)
    from ppl_lvm.training import loop

    class StoppedError(Exception):
        pass

    count_steps = loop.Training._count_steps

    def interrupted(self: Any, *args: Any) -> None:
        count_steps(self, *args)
        if self.step_number == stop:
            self.save()
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_count_steps", interrupted)
        with pytest.raises(StoppedError):
            fit_mean(**options, directory=tmp_path)
    resumed = fit_mean(**options, directory=tmp_path, resume=True)
    assert resumed.history["bound"] == whole.history["bound"]
    assert resumed.results["predicted_gain"] == whole.results["predicted_gain"]
    for name, value in whole.parameters().items():
        assert torch.equal(value, resumed.parameters()[name])
    assert load_run(tmp_path).results["converged"] == whole.results["converged"]


@pytest.mark.slow
def test_restarts_trained_together_stop_together() -> None:
    run = fit_mean(restarts=3)
    steps = {restart["steps"] for restart in run.restarts}
    assert len(steps) == 1
    assert all(restart["converged"] for restart in run.restarts)


@pytest.mark.slow
def test_held_out_rows_decide_where_there_are_some() -> None:
    run = fit_mean(validation=50)
    assert run.results["converged"]


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_power_laws_are_extrapolated_to_their_limit(power: float) -> None:
    steps = np.array([400.0, 800.0, 1600.0])
    bounds = -(steps**-power)
    gains, logs = np.diff(bounds), np.diff(np.log(steps))
    predicted = power_law_remaining_gain(list(gains), list(logs))
    assert predicted == pytest.approx(-bounds[-1], rel=1e-6)


def test_fast_decrease_of_gains_is_not_extrapolated() -> None:
    logs = [math.log(2)] * 3
    assert power_law_remaining_gain([13.1, 2.66, 0.134], logs) == pytest.approx(0.134)
    assert power_law_remaining_gain([1.0], [math.log(2)]) == pytest.approx(1.0)


def test_remaining_gain_of_a_noisy_history() -> None:
    steps = np.arange(1, 4001)
    noise = np.random.default_rng(0).normal(0, 0.05, len(steps))
    gain, error = remaining_gain(-200 / steps + noise)
    assert gain == pytest.approx(200 / 4000, abs=5 * error)
    flat, error = remaining_gain(noise)
    assert flat <= 5 * error
    assert not math.isnan(error)
