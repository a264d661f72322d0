"""Restarts: choice of the best, equality with separate runs."""

from pathlib import Path

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.fitting.svi import fit
from small_programs import nothing


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
