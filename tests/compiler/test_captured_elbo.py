"""Captured losses in loops with their own optimizer."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import CannotCaptureError, CapturedELBO

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


class Model(PyroModule):
    """z_n ~ N(0, I), x_n ~ N(network(z_n), 1), the network a module that Pyro does not know."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.branches = branches
        self.network = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            mean = self.network(z)
            if self.branches and float(mean.detach().sum()) > 1e9:
                mean = mean + 1
            pyro.sample("x", Normal(mean, 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    """q(z_n | x_n) = N(encoder(x_n), 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(self.encoder(x), 1.0).to_event(1))


def train(elbo: Any, *, branches: bool = False, steps: int = 12) -> tuple[list[float], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = Model(branches), Guide()
    loss_of = elbo(model, guide)
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=0.02)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(X)
        (loss / len(X)).backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return values, (model, guide)


def test_loop_takes_the_steps_of_the_elbo_below() -> None:
    expected, _ = train(Trace_ELBO())
    elbo = CapturedELBO(Trace_ELBO())
    ours, programs = train(elbo)
    assert elbo.pair(*programs).num_captures == 1
    assert ours == pytest.approx(expected, rel=1e-5)


def test_gradients_are_accumulated_and_scaled() -> None:
    def gradients(elbo: Any, *, warm: int) -> list[Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide = Model(), Guide()
        loss_of = elbo(model, guide)
        for _ in range(warm):
            loss_of(X)
        for p in loss_of.parameters():
            p.grad = torch.ones_like(p)
        pyro.set_rng_seed(1)
        (3 * loss_of(X)).backward()
        loss_of(X).backward()
        return [p.grad for p in loss_of.parameters()]

    for warm in (0, 6):
        expected = gradients(Trace_ELBO(), warm=warm)
        ours = gradients(CapturedELBO(Trace_ELBO()), warm=warm)
        for a, b in zip(expected, ours, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_loss_without_gradients_is_that_of_the_elbo_below() -> None:
    elbo, (model, guide) = CapturedELBO(Trace_ELBO()), (Model(), Guide())
    pyro.set_rng_seed(0)
    with torch.no_grad():
        value = elbo.differentiable_loss(model, guide, X)
    pyro.set_rng_seed(0)
    assert float(value) == pytest.approx(Trace_ELBO().loss(model, guide, X))
    assert not value.requires_grad


def test_program_that_branches_runs_eagerly_after_one_message() -> None:
    lines: list[str] = []
    expected, _ = train(Trace_ELBO(), branches=True)
    ours, _ = train(CapturedELBO(Trace_ELBO(), announce=lines.append), branches=True)
    assert ours == pytest.approx(expected, rel=1e-5)
    assert len(lines) == 1
    with pytest.raises(CannotCaptureError):
        train(CapturedELBO(Trace_ELBO(), engine="captured"), branches=True)


class Plan:
    """A training plan that makes its programs anew for each step, as scvi-tools' does."""

    def __init__(self, elbo: Any, scale: float) -> None:
        self.parts, self.elbo, self.scale = (Model(), Guide()), elbo, scale

    def model(self, x: Tensor, weight: float = 1.0) -> None:
        with pyro.poutine.scale(scale=weight):  # type: ignore[arg-type]
            self.parts[0](x)

    def guide(self, x: Tensor, weight: float = 1.0) -> None:
        self.parts[1](x)

    def training_step(self, x: Tensor, weight: float) -> Tensor:
        scaled = [pyro.poutine.scale(part, self.scale) for part in (self.model, self.guide)]
        loss: Tensor = self.elbo.differentiable_loss(*scaled, x, weight=weight)
        return loss


def test_plan_that_wraps_its_programs_anew_takes_captured_steps() -> None:
    def run(elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        plan = Plan(elbo, 1 / len(X))
        leaves = [p for part in plan.parts for p in part.parameters()]
        optimizer = torch.optim.Adam(leaves, lr=0.02)
        values = []
        for step in range(14):
            optimizer.zero_grad()
            loss = plan.training_step(X, 0.1 * (step + 1))
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        return values

    elbo = CapturedELBO(Trace_ELBO())
    assert run(elbo) == pytest.approx(run(Trace_ELBO()), rel=1e-5)
    (pair,) = elbo._pairs.values()
    assert pair.num_captures == 1
