"""fit at every level of the engine: the same steps, the same safety, the same run when resumed."""

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal, Poisson
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm import resume
from ppl_lvm.checkpoint import load_checkpoint
from ppl_lvm.data import load_data
from ppl_lvm.fit import fit
from ppl_lvm.nonfinite import NonFiniteError
from ppl_lvm.pair import Pair
from ppl_lvm.progress import Progress
from ppl_lvm.rows import Calls, RowOrder
from ppl_lvm.stepping import Options
from ppl_lvm.training import Training

LEVELS: list[Any] = ["eager", "captured", pytest.param("compiled", marks=pytest.mark.slow)]


class Factor(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(w z_n + b, s), with a running mean of x in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.b = nn.Parameter(torch.zeros(3))
        self.s = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            loc = z * self.w + self.b + 0.01 * self.mean
            pyro.sample("x", Normal(loc, self.s).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)
        self.spread = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), self.spread).to_event(1))


def data(n: int = 70) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, generator=generator)
    return z * torch.tensor([2.0, -1.0, 0.5]) + torch.randn(n, 3, generator=generator)


STEPS = 24
ASKED: dict[str, Any] = {
    "batch_size": 32,  # and 6 left over in every third batch
    "schedule": "OneCycleLR(max_lr=0.05, total_steps=24)",
    "clip_norm": 0.5,
    "kl_annealing": 12,
    "validate_every": 12,
}


def training(path: Path | None = None, **asked: Any) -> Training:
    pyro.set_rng_seed(5)
    options = Options(**{"num_steps": STEPS, **ASKED, **asked})
    x = load_data(data())
    pair = Pair(Factor(), Guide(), Trace_ELBO())
    pair.prepare(*x.batch(torch.arange(options.batch_size)))
    return Training(pair, x, load_data(data(20)), options, path=path)


def to_the_end(run: Training) -> dict[str, Tensor]:
    run.run(Progress(run.options.num_steps, shown=False))
    return run.pair.state()


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("per_call", [1, 4])
def test_every_level_takes_the_eager_steps(level: Any, per_call: int) -> None:
    batch_size = 35 if per_call > 1 else 32  # in a ragged epoch calls would be short
    eager = training(engine="eager", batch_size=batch_size)
    wanted = to_the_end(eager)
    other = training(engine=level, batch_size=batch_size, steps_per_call=per_call)
    found = to_the_end(other)
    assert other.stepping.level == level
    for name, values in eager.history.items():
        assert other.history[name] == pytest.approx(values, rel=1e-5), name
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6), name
    if level == "compiled" and per_call > 1:
        assert list(other.stepping.whole._many) == [4]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("optimizer", ["Adam(lr=0.01)", "SGD(lr=0.01)"])
def test_a_resumed_run_is_the_same_bit_for_bit(level: Any, optimizer: str, tmp_path: Path) -> None:
    whole = training(engine=level, optimizer=optimizer)
    wanted = to_the_end(whole)
    part = training(tmp_path / "c", engine=level, optimizer=optimizer)
    while part.step_number < 10:  # before the second small batch has been seen
        part.step()
    part.save()
    again = training(tmp_path / "c", engine=level, optimizer=optimizer)
    resume.load(again, tmp_path / "c")
    found = to_the_end(again)
    assert again.history == whole.history
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(("first", "second"), [("captured", "eager"), ("eager", "captured")])
def test_a_run_resumes_at_another_level(first: Any, second: Any, tmp_path: Path) -> None:
    whole = training(engine="eager")
    to_the_end(whole)
    part = training(tmp_path / "c", engine=first)
    while part.step_number < 10:
        part.step()
    part.save()
    again = training(tmp_path / "c", engine=second)
    resume.load(again, tmp_path / "c")
    to_the_end(again)
    assert again.history["bound"] == pytest.approx(whole.history["bound"], rel=1e-5)
