"""Runs with estimators that learn parameters: training and reload."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.fitting.svi import fit
from ppl_lvm.runs.directory import load_run

pytestmark = pytest.mark.usefixtures("no_figures")


class Coins(PyroModule):
    """z_n ~ Bernoulli(σ(a)) (D,), x_n ~ N(W z_n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.w = nn.Parameter(torch.tensor([[2.0, 0.0, 0.0], [0.0, -2.0, 1.0]]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.a).to_event(1))
            pyro.sample("x", Normal(z @ self.w, 1.0).to_event(1), obs=x)


class CoinsGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.encoder(x)).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["NeuralBaseline", "DecayingAverageBaseline", "RELAX", "DisARM", None]
)
def test_run_with_learned_objective_trains_and_reloads(
    objective: str | None, tmp_path: Path
) -> None:
    x = torch.randn(100, 1) * torch.tensor([2.0, -1.0, 0.5]) + torch.randn(100, 3)
    options: dict[str, Any] = {"objective": objective, "optimizer": "Adam(lr=0.02)"}
    run = fit(Coins(), CoinsGuide(), x, num_steps=200, directory=tmp_path / "r", **options)
    assert np.mean(run.history["bound"][-20:]) > np.mean(run.history["bound"][:20])
    loaded = load_run(tmp_path / "r", model=Coins(), guide=CoinsGuide())
    assert loaded.log_evidence(x, 50).value == run.log_evidence(x, 50).value
