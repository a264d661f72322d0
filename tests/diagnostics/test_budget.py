"""A long chain of latents costs no more to diagnose than a short one: runs and rows are counted."""

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.diagnostics import budget as sizes
from ppl_lvm.diagnostics.budget import Budget
from ppl_lvm.diagnostics.diagnosis import Restarts, _Asking
from ppl_lvm.programs.pair import ModelGuidePair


class Chain:
    """z_1 → … → z_S → x by a step that counts how often it runs, and on how many numbers."""

    def __init__(self, length: int) -> None:
        self.length, self.runs, self.numbers = length, 0, 0

    def step(self, z: Tensor) -> Tensor:
        self.runs += 1
        self.numbers += z.numel()
        return 0.9 * z

    def __call__(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z_1", Normal(torch.zeros(len(x)), 1.0))
            for s in range(2, self.length + 1):
                z = pyro.sample(f"z_{s}", Normal(self.step(z), 0.5))
            pyro.sample("x", Normal(self.step(z), 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            for s in range(1, self.length + 1):
                pyro.sample(f"z_{s}", Normal(0.5 * x, 0.7))


def work(length: int) -> tuple[int, int]:
    chain = Chain(length)
    x = torch.randn(1200)
    pair = ModelGuidePair(chain, chain.guide, Trace_ELBO())
    pair.materialize_parameters(x)
    model = pair.model
    assert isinstance(model, Chain)
    asking = _Asking(pair, {"bound": [0.0]}, (x,), None, Restarts(), 40, 0)
    model.runs = model.numbers = 0
    for name, _, ask in asking.steps():
        if name in ("tightness", "khat"):
            with pair.scope():
                found = ask({})
            if name == "tightness":
                said = found.findings()[0].why
                rows = len(found.annealed.per_row)
                assert f"({rows} rows, {asking.temperatures} temperatures)" in said
    return model.runs, model.numbers


@pytest.mark.slow
def test_work_does_not_grow_with_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = work(2), work(8)
    assert long[0] < 1.5 * short[0]
    assert long[1] < 1.5 * short[1]
    # Were temperatures the same for both, it would be four times as much.
    monkeypatch.setattr(sizes, "LEAST_TEMPERATURES", 40)
    assert work(8)[0] > 3.5 * short[0]


def test_few_latents_are_asked_about_in_full() -> None:
    full = Budget(1, False)
    assert (full.rows, full.annealing_rows, full.simulated_rows) == (1000, 300, 100)
    assert full.temperatures(100) == Budget(2, False).temperatures(100) == 100
    chain = Budget(33, False)
    assert (chain.rows, chain.annealing_rows, chain.simulated_rows) == (100, 20, 20)
    assert chain.temperatures(100) == 10
    assert chain.temperatures(1000) == 60
    assert chain.temperatures(4) == 4
