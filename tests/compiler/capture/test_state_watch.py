"""Replacements between steps: CompiledSVI continues as `pyro.infer.SVI` does."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.compiler import CompiledSVI

x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Change = Callable[[Any, Any, int], None]


class Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = 0.5

    def forward(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=self.weight):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(3))
    pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))


def losses(engine: Any, change: Change, steps: int = 24) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, optimizer, loss = Model(), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO()
    svi: Any = (
        SVI(model, guide, optimizer, loss)
        if engine is None
        else CompiledSVI(model, guide, optimizer, loss, engine=engine)
    )
    values = []
    for i in range(steps):
        values.append(svi.step(x))
        change(model, loss, i)
    if engine not in (None, "eager"):
        assert svi.level == engine  # captured again
    return values


def nothing(model: Any, loss: Any, i: int) -> None:
    pass


def number(model: Any, loss: Any, i: int) -> None:
    model.weight = 0.5 if i < 10 else 4.0


def particles(model: Any, loss: Any, i: int) -> None:
    loss.num_particles = 1 if i < 10 else 3


def stored(model: Any, loss: Any, i: int) -> None:
    if i == 10:
        pyro.get_param_store()["loc"] = torch.ones(3)


def loaded() -> Change:
    saved: dict[str, Any] = {}

    def change(model: Any, loss: Any, i: int) -> None:
        store = pyro.get_param_store()
        if i == 3:
            state = store.get_state()
            saved.update(state)
            saved["params"] = {
                k: v.detach().clone().requires_grad_() for k, v in state["params"].items()
            }
        if i == 10:
            store.set_state(saved)

    return change


def cleared(model: Any, loss: Any, i: int) -> None:
    if i == 10:
        pyro.clear_param_store()


CHANGES: dict[str, Callable[[], Change]] = {
    "number": lambda: number,
    "particles": lambda: particles,
    "stored": lambda: stored,
    "loaded": loaded,
    "cleared": lambda: cleared,
}


@pytest.mark.parametrize("name", CHANGES)
def test_captured_svi_detects_replacements_between_steps(name: str) -> None:
    expected = losses(None, CHANGES[name]())
    assert losses("captured", CHANGES[name]()) == pytest.approx(expected, rel=1e-5)
    assert losses(None, nothing) != pytest.approx(expected, rel=1e-3)  # it makes a difference


@pytest.mark.slow
def test_compiled_svi_detects_replacements_between_steps() -> None:
    expected = losses(None, stored)
    assert losses("compiled", stored) == pytest.approx(expected, rel=1e-5)


def test_parameter_frozen_between_steps_stays() -> None:
    pyro.clear_param_store()
    adam = pyro.optim.Adam({"lr": 0.05})
    svi = CompiledSVI(Model(), guide, adam, Trace_ELBO(), engine="captured")
    for _ in range(8):
        svi.step(x)
    frozen = pyro.param("loc").unconstrained().requires_grad_(False)
    before, other = frozen.clone(), pyro.param("scale").detach().clone()
    for _ in range(8):
        svi.step(x)
    assert svi.level == "captured"
    assert torch.equal(frozen, before)
    assert not torch.equal(pyro.param("scale").detach(), other)


def test_forget_captures_an_undetected_change() -> None:
    hidden = {"by": {"name": 1.0}}

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(z, hidden["by"]["name"]).to_event(1), obs=x)

    pyro.clear_param_store()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO(), engine="captured")
    for _ in range(5):
        svi.step(x)
    hidden["by"]["name"] = 5.0
    torch.manual_seed(0)
    expected = svi.evaluate_loss(x)
    svi.forget()
    torch.manual_seed(0)
    assert svi.step(x) == pytest.approx(expected, rel=1e-5)


# Parameters that only some arguments use


def alternate(step: Callable[[Any], Any]) -> tuple[list[float], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    one, other = nn.Linear(3, 1), nn.Linear(3, 1)

    def model(x: Tensor, first: bool) -> None:
        pyro.module("one", one)
        pyro.module("other", other)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal((one if first else other)(x)[:, 0], 1.0), obs=x.sum(-1))

    svi = step(model)
    return [svi.step(x, i % 3 == 0) for i in range(24)], svi


def no_guide(*args: Any) -> None:
    pass


def test_unused_parameter_moves_by_momentum_as_in_pyro() -> None:
    def run(kind: Any, **options: Any) -> tuple[list[float], Any]:
        adam = pyro.optim.Adam({"lr": 0.05})
        return alternate(lambda model: kind(model, no_guide, adam, Trace_ELBO(), **options))

    expected, _ = run(SVI)
    assert run(CompiledSVI, engine="eager")[0] == pytest.approx(expected, rel=1e-6)
    losses, svi = run(CompiledSVI, engine="captured")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert svi.num_captures == 2


def test_torch_optimizer_admits_parameters_that_appear_later() -> None:
    """The first step uses one of two layers; the other one is trained too."""

    def run(engine: Any) -> tuple[list[float], Any]:
        adam = partial(torch.optim.Adam, lr=0.05)
        return alternate(
            lambda model: CompiledSVI(model, no_guide, adam, Trace_ELBO(), engine=engine)
        )

    expected, _ = run("eager")
    assert run("captured")[0] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.7 * expected[1]
