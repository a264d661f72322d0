"""Compiled steps: check and random numbers."""

import math
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.compiler import CompiledSVI, make_training_step
from ppl_lvm.compiler.backend import compiled_step
from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.optim.flat import FlatOptimizer

STEPS = 3000


@pytest.mark.parametrize(("error", "rejected"), [(0.0, False), (0.01, True)])
def test_check_at_an_optimum_accepts_rounding_and_rejects_a_wrong_gradient(
    error: float, rejected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the gradient is rounding error; the wrong twin's is also off by one part in 100."""
    m = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    x = torch.tensor([[1.0, 3.0], [2.0, 4.0]])

    def loss_and_grads(x: Tensor) -> Tensor:
        loss = ((x - m) ** 2).sum()
        loss.backward()
        return loss.detach()

    def compile_inexactly(graph: Any, inputs: Any, same_random: bool) -> Any:
        def call(*flat: Tensor) -> Any:
            before = flat[1].clone()
            out = graph(*flat)
            flat[1].add_((flat[1] - 0.5 * before) * error + 1e-6)  # of the momentum
            return out

        return call

    optimizer = torch.optim.SGD([m], lr=0.1, momentum=0.5)
    step = make_training_step(loss_and_grads, optimizer, "captured")
    for _ in range(200):
        step(x)
    assert torch.allclose(m, x.mean(0))
    recording = step.record(x)
    groups = FlatOptimizer().plan(step.optimizer.parameter_slots([m]) or [])
    assert groups is not None
    compiled = CompiledStep(recording, [m], groups, [x])
    monkeypatch.setattr(compiled_step, "compile_graph", compile_inexactly)
    if rejected:
        with pytest.raises(RuntimeError, match="differs from the captured one"):
            compiled.compile([x], same_random=True)
    else:
        compiled.compile([x], same_random=True)


# Random numbers


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        c = pyro.sample("c", Bernoulli(0.4))
        pyro.sample("x", Normal(z + c, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    p = pyro.param("p", torch.tensor(0.2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(loc, 0.8))
        pyro.sample("c", Bernoulli(p.expand(len(x))))


def losses(same_random: bool | None, seed: int = 0) -> Tensor:
    """Losses of steps with learning rate 0: draws of one distribution."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    svi = CompiledSVI(
        model,
        guide,
        partial(torch.optim.SGD, lr=0.0),
        Trace_ELBO(),
        engine="captured" if same_random is None else "compiled",
        same_random=bool(same_random),
    )
    x = torch.linspace(-1, 2, 4)
    return torch.tensor([svi.step(x) for _ in range(STEPS)], dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    """The larger distance of the means and of the variances of draws, in standard errors."""
    distances, m = [], a.mean()
    for u, v in ((a, b), ((a - m) ** 2, (b - m) ** 2)):
        error = math.sqrt(float(u.var() / len(u) + v.var() / len(v)))
        distances.append(abs(float(u.mean() - v.mean())) / error)
    return max(distances)


@pytest.mark.slow
def test_compilers_random_numbers_have_the_same_distribution() -> None:
    eager, compiled = losses(None), losses(False)
    draws = compiled[10:]
    assert distance(eager, compiled) < 5
    assert not torch.allclose(eager[10:], draws)  # other numbers,
    assert len(draws.unique()) > 0.9 * len(draws)  # new at each step,
    assert abs(float(torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1])) < 5 / STEPS**0.5
    assert torch.equal(compiled, losses(False))  # and determined by the seed
    assert not torch.equal(compiled, losses(False, seed=1))


@pytest.mark.slow
def test_distance_detects_a_wrong_distribution() -> None:
    eager = losses(None)
    assert distance(eager, eager.mean() + 1.2 * (eager - eager.mean())) > 5
    assert distance(eager, eager + 0.4) > 5
