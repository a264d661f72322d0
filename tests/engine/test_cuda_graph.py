"""A step launched as one CUDA graph, with a recorder that needs no device.

It keeps what a CUDA graph keeps: the addresses of a call's tensors and what it returned. That a
device's own recorder does, `tests/test_cuda.py` asks where there is one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppl_lvm.engine import cuda_graph
from ppl_lvm.engine.cuda_graph import CudaGraph, in_one_launch
from ppl_lvm.fit import fit

Recorded = tuple[Callable[[], None], list[Tensor]]


def record(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    losses = [loss.clone() for loss in function(*inputs)]

    def replay() -> None:
        for kept, loss in zip(losses, function(*inputs), strict=True):
            kept.copy_(loss)

    return replay, losses


def record_values(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """A wrong one, which keeps what the tensors held."""
    held = [tensor.clone() for tensor in inputs]
    losses = [loss.clone() for loss in function(*inputs)]

    def replay() -> None:
        for kept, loss in zip(losses, function(*[t.clone() for t in held]), strict=True):
            kept.copy_(loss)

    return replay, losses


def refuse(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda_graph, "_recorded", record)


def walk(position: Tensor, speed: Tensor, batch: Tensor) -> list[Tensor]:
    """A random walk with a drift."""
    position.add_(speed * batch.sum() + torch.randn(()))
    return [(position**2).sum()]


def start() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([1.0, 2.0]), torch.tensor(0.5), torch.tensor([3.0, 4.0])


def made(inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    return in_one_launch(walk, inputs, range(2, 3), inputs[:1])


def test_making_it_changes_nothing_and_draws_nothing() -> None:
    inputs, state = start(), torch.get_rng_state()
    assert isinstance(made(inputs), CudaGraph)
    assert all(map(torch.equal, inputs, start()))
    assert torch.equal(state, torch.get_rng_state())


def test_it_reads_each_batch_and_each_number_anew_and_leaves_callers_tensors() -> None:
    ours, theirs = start(), start()
    step = made(ours)
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    for turn in range(4):
        batch = torch.full((2,), float(turn))
        for inputs, call, losses in ((ours, step, found), (theirs, walk, wanted)):
            torch.manual_seed(turn)
            inputs[1].fill_(0.1 * turn)
            losses += call(*inputs[:2], batch)
        assert batch.eq(turn).all()
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(torch.stack(found), torch.stack(wanted))  # none was written over
    assert torch.equal(ours[2], start()[2])


def test_tensors_that_have_moved_are_not_looked_for_where_they_were() -> None:
    inputs = start()
    step = made(inputs)
    torch.manual_seed(0)
    loss = step(torch.zeros(2), *inputs[1:])
    torch.manual_seed(0)
    assert torch.equal(loss[0], walk(torch.zeros(2), *inputs[1:])[0])
    assert torch.equal(inputs[0], start()[0])


@pytest.mark.parametrize("wrong", [record_values, refuse])
def test_one_that_gives_something_else_or_cannot_be_had_is_not_used(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "_recorded", wrong)
    inputs, state = start(), torch.get_rng_state()
    assert made(inputs) is walk
    assert all(map(torch.equal, inputs, start()))
    assert torch.equal(state, torch.get_rng_state())


def test_nor_one_that_would_keep_a_number_of_the_processors() -> None:
    """The rest lies on another device."""
    inputs = [torch.zeros(2, device="meta"), torch.tensor(0.5), torch.zeros(2, device="meta")]
    assert made(inputs) is walk


def _model(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", Normal(loc + z, 0.5).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.eye(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x @ slope, 0.4).to_event(1))


@pytest.mark.parametrize("steps_per_call", [1, 10])
@pytest.mark.parametrize("rows", [None, 16])
def test_a_run_with_annealing_and_a_schedule_takes_the_same_steps(
    steps_per_call: int, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes from step to step reaches the graph: batch, KL weight, learning rate, draws."""
    replays = []

    def counted(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
        replay, losses = record(function, inputs)
        return lambda: [replays.append(1), replay()][1], losses  # type: ignore[func-returns-value]

    monkeypatch.setattr("ppl_lvm.engine.compiled.compile_graph", lambda graph, *_: graph)
    x = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))

    def history(recorder: Any) -> list[float]:
        monkeypatch.setattr(cuda_graph, "_recorded", recorder)
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        options: dict[str, Any] = {"num_steps": 40, "batch_size": rows, "kl_annealing": 20}
        options |= {"schedule": "StepLR(step_size=15, gamma=0.3)", "progress": False}
        options |= {"engine": "compiled", "steps_per_call": steps_per_call}
        bounds: list[float] = fit(_model, _guide, x, **options).history["bound"]
        return bounds

    expected = history(refuse)
    assert not replays
    assert history(counted) == expected
    assert len(replays) >= 38  # the first is run by the program, and one replay is the check's
