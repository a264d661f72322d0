"""Several random starts: the best that is sound is kept, each equals its own run."""

import functools
from pathlib import Path

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.fitting.svi import fit

quiet = functools.partial(fit, progress=False)


class Start(PyroModule):
    """x_n ~ N(m, 1) with a random start and a wrong solution that looks best."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.0))
        self.bonus = 0.0

    def initialize(self, x: Tensor) -> None:
        start = torch.randn(())
        self.m.data.copy_(start)
        self.bonus = 100.0 if start > 0.5 else 0.0

    def degenerate(self, x: Tensor) -> str | None:
        return "its start was above 0.5" if self.bonus else None

    def forward(self, x: Tensor) -> None:
        pyro.factor("bonus", torch.tensor(self.bonus))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.m, 1.0), obs=x)


def test_restarts_keep_the_best_that_is_sound_and_report_all(tmp_path: Path) -> None:
    run = quiet(
        Start,
        lambda x: None,
        torch.zeros(5),
        restarts=6,
        num_steps=2,
        optimizer="SGD(lr=0.0)",
        directory=tmp_path / "run",
    )
    reports = run.restarts
    assert [r["seed"] for r in reports] == [0, 1, 2, 3, 4, 5]
    assert {bool(r["degenerate"]) for r in reports} == {True, False}
    chosen = [r for r in reports if r["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["degenerate"] is None
    assert chosen[0]["bound"] == max(r["bound"] for r in reports if not r["degenerate"])
    assert chosen[0]["bound"] < max(r["bound"] for r in reports)
    assert run.results["bound"] == chosen[0]["bound"]


def test_a_restart_equals_its_own_run() -> None:
    x = torch.arange(5.0)
    best = quiet(Start, lambda x: None, x, restarts=4, num_steps=5)
    alone = quiet(Start, lambda x: None, x, seed=best.results["seed"], num_steps=5)
    assert best.history == alone.history
