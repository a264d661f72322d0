"""Restarts: choice of the best, equality with separate runs."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import load_run
from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.fitting.svi import fit
from small_programs import nothing

pytestmark = pytest.mark.usefixtures("no_figures")


class RandomStart(PyroModule):
    """x_n ~ N(m, 1), random initial m, and a degenerate solution with the best bound."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.0))
        self.bonus = 0.0

    def initialize(self, x: Tensor) -> None:
        start = torch.randn(())
        self.m.data.copy_(start)
        self.bonus = 100.0 if start > 0.5 else 0.0

    def degenerate(self, x: Tensor) -> str | None:
        return "its initial m was above 0.5" if self.bonus else None

    def forward(self, x: Tensor) -> None:
        pyro.factor("bonus", torch.tensor(self.bonus))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.m, 1.0), obs=x)


def test_restarts_choose_the_best_non_degenerate_and_record_all(tmp_path: Path) -> None:
    run = fit(
        RandomStart,
        nothing,
        torch.zeros(5),
        restarts=6,
        num_steps=2,
        optimizer="SGD(lr=0.0)",
        directory=tmp_path / "run",
    )
    entries = run.restarts
    assert [e["seed"] for e in entries] == [0, 1, 2, 3, 4, 5]
    assert {bool(e["degenerate"]) for e in entries} == {True, False}
    chosen = [e for e in entries if e["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["degenerate"] is None
    assert chosen[0]["bound"] == max(e["bound"] for e in entries if not e["degenerate"])
    assert chosen[0]["bound"] < max(e["bound"] for e in entries)
    assert run.results["bound"] == chosen[0]["bound"]


def test_best_restart_equals_a_separate_run() -> None:
    x = torch.arange(5.0)
    best = fit(RandomStart, lambda x: None, x, restarts=4, num_steps=5)
    separate = fit(RandomStart, lambda x: None, x, seed=best.results["seed"], num_steps=5)
    assert best.history == separate.history


class SometimesExploding(PyroModule):
    """x_n ~ N(m, 1), where m beyond a random limit is not a number."""

    limit: Tensor

    def __init__(self, high: float = 99.0) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("limit", torch.tensor(0.3))
        self.high = high

    def initialize(self, x: Tensor) -> None:
        self.limit.fill_(0.3 if torch.randn(()) > 0.5 else self.high)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            m = self.m + 0 * (self.limit - self.m).log()
            pyro.sample("x", Normal(m, 1.0), obs=x)


@pytest.mark.parametrize("engine", [pytest.param("eager", marks=pytest.mark.slow), "captured"])
def test_restart_that_is_not_finite_is_recorded_and_the_others_go_on(
    engine: Any, tmp_path: Path
) -> None:
    options = {"num_steps": 60, "optimizer": "Adam(lr=0.05)", "engine": engine}
    path = tmp_path / "run"
    run = fit(SometimesExploding, nothing, torch.ones(5), restarts=6, directory=path, **options)
    ended = [e for e in run.restarts if e["bound"] is None]
    assert 0 < len(ended) < 6
    for entry in ended:
        assert "it ended: Step" in entry["degenerate"]
        assert "site 'x' of the model has a loc that is NaN" in entry["degenerate"]
        assert entry["steps"] < 60
        with pytest.raises(NonFiniteError, match="has a loc that is NaN"):
            fit(SometimesExploding, nothing, torch.ones(5), seed=entry["seed"], **options)
    others = [e for e in run.restarts if e["bound"] is not None]
    assert all(e["degenerate"] is None and e["steps"] == 60 for e in others)
    separate = fit(SometimesExploding, nothing, torch.ones(5), seed=others[0]["seed"], **options)
    assert others[0]["bound"] == pytest.approx(separate.results["bound"], abs=1e-6)
    assert load_run(path).results["bound"] == run.results["bound"]
    assert len(run.diagnose(torch.ones(5)).findings) > 0


def test_fit_stops_if_no_restart_is_finite() -> None:
    with pytest.raises(NonFiniteError, match="has a loc that is NaN"):
        fit(
            SometimesExploding,
            nothing,
            torch.ones(5),
            settings={"high": 0.3},
            restarts=3,
            num_steps=60,
            optimizer="Adam(lr=0.05)",
        )
