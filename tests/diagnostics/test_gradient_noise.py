"""Gradient quality: known signal and noise, a dead parameter, an exploding one."""

from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.diagnostics.gradient_noise import gradient_quality
from ppl_lvm.programs.pair import ModelGuidePair


class Mean(PyroModule):
    def __init__(self, dead: bool = False, wild: bool = False) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(1.0))
        self.unused = nn.Parameter(torch.zeros(3)) if dead else None
        self.wild = wild

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            scale = torch.exp(6 * z.detach()) if self.wild else 1.0
            pyro.sample("x", Normal(z + self.shift * scale, 1.0), obs=x)
        if self.unused is not None:
            pyro.factor("none", 0.0 * self.unused.detach().sum())


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.loc.expand(len(x)), 0.5))


def quality(rows: int = 50, converged: bool | None = None, **kind: Any) -> Any:
    pair = ModelGuidePair(Mean(**kind), Guide(), Trace_ELBO())
    x = torch.zeros(rows)
    pair.materialize_parameters(x)
    return gradient_quality(pair, x, replicates=400, converged=converged)


def test_signal_and_noise_meet_their_closed_form() -> None:
    # ∂/∂shift of the mean bound is −mean(z + shift): mean −1, variance 0.25 / N.
    found = quality(rows=4).groups["model/shift"]
    assert abs(found.snr - 1 / 0.25) < 5 * found.snr / (2 * 400) ** 0.5
    assert found.dead == 0


def test_sound_pair_is_good() -> None:
    assert [f.verdict for f in quality(converged=True).findings()] == ["good"] * 3


def test_dead_parameter_is_named() -> None:
    found = quality(dead=True)
    assert found.dead == ["model/unused"]
    assert found.findings()[0].verdict == "bad"
    assert "model/unused" in found.findings()[0].why


def test_exploding_parameter_is_found() -> None:
    found = quality(rows=1, wild=True)
    assert found.findings()[1].verdict == "bad"
    assert "model/shift" in found.exploding


def test_noise_is_blamed_only_while_the_bound_climbs() -> None:
    pair = ModelGuidePair(Mean(), Guide(), Trace_ELBO())
    with torch.no_grad():
        pair.model.shift.zero_()
    x = torch.zeros(1)
    pair.materialize_parameters(x)
    verdicts = [
        gradient_quality(pair, x, replicates=800, converged=c).findings()[2].verdict
        for c in (True, False, None)
    ]
    assert verdicts == ["good", "bad", "unknown"]


def test_parameters_are_left_as_they_were() -> None:
    pair = ModelGuidePair(Mean(), Guide(), Trace_ELBO())
    x = torch.zeros(5)
    pair.materialize_parameters(x)
    before = pair.state()
    gradient_quality(pair, x, replicates=3)
    assert all(torch.equal(before[n], t) for n, t in pair.state().items())
    assert all(leaf.grad is None for leaf in pair.unconstrained_parameters.values())
