"""Captured steps are the eager ones with every class of `estimators.__all__`."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.estimators.base import Estimator

CLASSES = [getattr(estimators, name) for name in estimators.__all__]


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_captured_steps_are_the_eager_ones(cls: type[Estimator]) -> None:
    x = torch.randn(6, 3)
    bits = cls.requires != "reparameterized"
    prior: Any = Bernoulli(torch.full((2,), 0.4)) if bits else Normal(torch.zeros(2), 1.0)

    def model(x: Tensor) -> None:
        W = pyro.param("W", torch.full((2, 3), 0.3))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", Normal(z @ W, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        A = pyro.param("A", torch.full((3, 2), 0.2))
        with pyro.plate("data", len(x), dim=-1):
            q = Bernoulli(logits=x @ A) if bits else Normal(x @ A, 0.5)
            pyro.sample("z", q.to_event(1))

    def losses(engine: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optimizer, estimator = pyro.optim.Adam({"lr": 0.01}), cls(num_particles=2)
        svi = CompiledSVI(model, guide, optimizer, estimator, engine=engine)
        return [float(svi.step(x)) for _ in range(6)]

    assert losses("captured") == pytest.approx(losses("eager"), rel=1e-4)
