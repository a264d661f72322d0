"""Parameters that are frozen in turns, or that come later."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import CompiledSVI

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


class Decoder(PyroModule):
    """x_n ~ N(W z_n + b, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Encoder(PyroModule):
    """q(z_n) = N(V x_n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PyroModule[nn.Linear](3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(self.encoder(x), 1.0).to_event(1))


def alternate(
    make: Any, optimizer: Any, steps: int = 50, every: int = 4, **options: Any
) -> tuple[list[float], Any, list[Tensor]]:
    """Losses, the object, and the decoder's parameters where it was frozen and freed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = Decoder(), Encoder()
    svi = make(model, guide, optimizer, Trace_ELBO(), **options)
    losses, seen = [], []
    for step in range(steps):
        if step % every == 0:
            train_model = step // every % 2 == 0
            model.requires_grad_(train_model)
            guide.requires_grad_(not train_model)
            seen.append(model.decoder.weight.detach().clone())
        losses.append(svi.step(X))
    return losses, svi, seen


def sgd() -> Any:
    return pyro.optim.SGD({"lr": 1e-3})


@pytest.mark.parametrize("engine", ["eager", "captured", "auto"])
def test_alternating_parameters_take_the_steps_of_svi_with_one_capture_each(engine: Any) -> None:
    expected, _, _ = alternate(SVI, sgd())
    losses, svi, _ = alternate(CompiledSVI, sgd(), engine=engine)
    assert losses == pytest.approx(expected, rel=1e-5)
    # The third: in the first steps all are trained, since Pyro frees a parameter that it stores.
    assert svi.num_captures == (0 if engine == "eager" else 3)
    assert svi.capture_error is None


@pytest.mark.parametrize(
    "engine",
    [
        "eager",
        "captured",
        pytest.param("compiled", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_frozen_parameter_stays_at_every_level_and_goes_on_with_its_momentum(engine: Any) -> None:
    """Pyro's optimizers move it by momentum; here it stays, as torch's leave it."""
    adam = {"lr": 0.02}
    expected, _, _ = alternate(CompiledSVI, pyro.optim.Adam(adam), engine="eager")
    losses, svi, seen = alternate(CompiledSVI, pyro.optim.Adam(adam), engine=engine)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert torch.equal(seen[1], seen[2])  # frozen
    assert not torch.equal(seen[2], seen[3])
    assert svi.level == engine
    if engine == "compiled":
        assert len(svi.training_step.compiled_steps) == 3  # the third trains all


def test_each_selection_is_laid_out_once() -> None:
    optimizer = pyro.optim.Adam({"lr": 0.02})
    _, svi, _ = alternate(CompiledSVI, optimizer, steps=25, engine="captured")
    plans = [list(map(id, p.groups)) for p in svi.training_step._flat._plans.values()]
    assert len(plans) == 2
    model, guide = svi.model, svi.guide
    for step in range(8):
        model.requires_grad_(step % 2 == 0)
        guide.requires_grad_(step % 2 == 1)
        svi.step(X)
    assert [list(map(id, p.groups)) for p in svi.training_step._flat._plans.values()] == plans


def test_more_selections_than_captures_run_eagerly_after_one_message() -> None:
    lines: list[str] = []
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = Decoder(), Encoder()
    options: dict[str, Any] = {"max_captures": 2, "announce": lines.append}
    svi = CompiledSVI(model, guide, sgd(), Trace_ELBO(), **options)
    leaves = list(model.parameters())
    for step in range(40):
        for place, p in enumerate(leaves):
            p.requires_grad_(place != step // 5 % 3)
        svi.step(X)
    assert svi.num_captures == 2
    assert len(lines) == 1
    assert "selections of trainable parameters" in lines[0]


def branches(x: Tensor, first: bool) -> None:
    loc = pyro.param("first" if first else "second", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(loc, 1.0).to_event(1), obs=x)


def nothing(*args: Any) -> None:
    """A guide without sites."""


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_parameter_that_appears_later_is_trained_as_in_svi(engine: Any) -> None:
    def run(make: Any, **options: Any) -> tuple[list[float], Any]:
        pyro.clear_param_store()
        svi = make(branches, nothing, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), **options)
        return [svi.step(X, step % 3 != 2 or step < 6) for step in range(30)], svi

    expected, _ = run(SVI)
    losses, svi = run(CompiledSVI, engine=engine)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert svi.num_captures == (2 if engine == "captured" else 0)
