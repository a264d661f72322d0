"""Budget: rows and temperatures fall with the number of latents."""

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.diagnostics import DIAGNOSTICS, budget
from ppl_lvm.diagnostics.base import Context
from ppl_lvm.diagnostics.budget import Budget, evenly_spaced_rows
from ppl_lvm.programs.pair import ModelGuidePair


class Chain:
    """z_1 → … → z_S → x by a step that counts its runs and the size of its inputs."""

    def __init__(self, length: int) -> None:
        self.length, self.runs, self.scalars = length, 0, 0

    def step(self, z: Tensor) -> Tensor:
        self.runs += 1
        self.scalars += z.numel()
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
    """Runs of the step, and scalars that it processed, in two diagnostics of a chain."""
    chain = Chain(length)
    x = torch.randn(1200)
    pair = ModelGuidePair(chain, chain.guide, Trace_ELBO())
    pair.materialize_parameters(x)
    model = pair.model
    assert isinstance(model, Chain)
    context = Context(pair, {"bound": [0.0]}, (x,), temperatures=40)
    model.runs = model.scalars = 0
    by_slug = {d.slug: d for d in DIAGNOSTICS}
    with pair.scope():
        tightness = by_slug["tightness"].run(context)
        by_slug["khat"].run(context)
    rows = len(tightness.annealed.per_row)  # type: ignore[attr-defined]
    why = tightness.findings()[0].why
    assert f"({rows} rows, {context.temperatures} temperatures)" in why
    return model.runs, model.scalars


@pytest.mark.slow
def test_work_does_not_grow_with_the_length_of_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = work(2), work(8)
    assert long[0] < 1.5 * short[0]
    assert long[1] < 1.5 * short[1]
    # With equal temperatures for both, it would be four times as much.
    monkeypatch.setattr(budget, "MIN_TEMPERATURES", 40)
    assert work(8)[0] > 3.5 * short[0]


def test_budget_is_full_for_few_latents_and_small_for_many() -> None:
    full = Budget(1, False)
    assert (full.rows, full.annealing_rows, full.simulated_rows) == (1000, 300, 100)
    assert full.temperatures(100) == Budget(2, False).temperatures(100) == 100
    chain = Budget(33, False)
    assert (chain.rows, chain.annealing_rows, chain.simulated_rows) == (100, 20, 20)
    assert chain.temperatures(100) == 10
    assert chain.temperatures(1000) == 60
    assert chain.temperatures(4) == 4


def test_evenly_spaced_rows_take_the_same_rows_of_every_tensor() -> None:
    x, y = torch.arange(100), torch.arange(100) * 2
    some_x, some_y = evenly_spaced_rows((x, y), 10)
    assert some_x.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    torch.testing.assert_close(some_y, 2 * some_x)
