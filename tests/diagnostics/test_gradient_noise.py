"""Gradient quality: signal, noise, dead and exploding parameters."""

from typing import Any

import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
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


class Faulty(PyroModule):
    """x_n ~ N(a z, 1) with an unused parameter, or one of rare, very large gradients."""

    def __init__(self, dead: bool, rare: bool) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.rare = rare
        if dead:
            self.unused = nn.Parameter(torch.tensor(1.0))
        if rare:
            self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        if self.rare:
            size = 1e5 if float(torch.rand(())) < 0.05 else 1.0
            pyro.factor("rare", size * self.b)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(self.a * z, 1.0), obs=x)


class NoisyGuide(PyroModule):
    """q(z | x) near the posterior of `Faulty`; `noisy` adds noise that hides its gradient."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.5))
        self.noisy = noisy
        if noisy:
            self.c = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        if self.noisy:
            pyro.factor("noise", self.c * 100 * torch.randn(()), has_rsample=True)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.m * x + 0.3, 0.7))


def _case(
    dead: bool = False, rare: bool = False, noisy: bool = False, converged: bool | None = True
) -> Any:
    pair = ModelGuidePair(Faulty(dead, rare), NoisyGuide(noisy), Trace_ELBO())
    x = torch.randn(20)
    pair.materialize_parameters(x)
    return gradient_quality(pair, x, converged=converged, replicates=200)


CASES = {
    "gradient": DiagnosticCases(
        good=[_case],
        faulty=[
            lambda: _case(dead=True),
            lambda: _case(rare=True),
            lambda: _case(noisy=True, converged=False),
        ],
    )
}


def quality(rows: int = 50, converged: bool | None = None, **options: Any) -> Any:
    pair = ModelGuidePair(Mean(**options), Guide(), Trace_ELBO())
    x = torch.zeros(rows)
    pair.materialize_parameters(x)
    return gradient_quality(pair, x, replicates=400, converged=converged)


def test_snr_meets_its_closed_form() -> None:
    # ∂/∂shift of the mean bound is −mean(z + shift): mean −1, variance 0.25 / N.
    statistics = quality(rows=4).groups["model/shift"]
    assert abs(statistics.snr - 1 / 0.25) < 5 * statistics.snr / (2 * 400) ** 0.5
    assert statistics.dead == 0


def test_sound_pair_is_good() -> None:
    *rows, ratio = quality(converged=True).findings()
    assert [f.verdict for f in rows] == ["good"] * 2
    assert ratio.verdict == "not applicable"  # the signal vanishes at a solution
    assert ratio.value is None


@pytest.mark.slow
def test_dead_parameter_is_named() -> None:
    result = quality(dead=True)
    assert result.dead == ["model/unused"]
    assert result.findings()[0].verdict == "bad"
    assert "model/unused" in result.findings()[0].why


def test_exploding_parameter_is_bad() -> None:
    result = quality(rows=1, wild=True)
    assert result.findings()[1].verdict == "bad"
    assert "model/shift" in result.exploding


@pytest.mark.slow
def test_low_snr_is_bad_only_before_convergence() -> None:
    pair = ModelGuidePair(Mean(), Guide(), Trace_ELBO())
    with torch.no_grad():
        pair.model.shift.zero_()
    x = torch.zeros(1)
    pair.materialize_parameters(x)
    verdicts = [
        gradient_quality(pair, x, replicates=800, converged=c).findings()[2].verdict
        for c in (True, False, None)
    ]
    assert verdicts == ["not applicable", "bad", "unknown"]


def test_gradient_quality_restores_parameters_and_gradients() -> None:
    pair = ModelGuidePair(Mean(), Guide(), Trace_ELBO())
    x = torch.zeros(5)
    pair.materialize_parameters(x)
    before = pair.state()
    gradient_quality(pair, x, replicates=3)
    assert all(torch.equal(before[n], t) for n, t in pair.state().items())
    assert all(leaf.grad is None for leaf in pair.unconstrained_parameters.values())
