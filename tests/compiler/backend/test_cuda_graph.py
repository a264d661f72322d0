"""A step launched as one CUDA graph, with a recorder that needs no device.

It keeps what a CUDA graph keeps: the addresses of a call's tensors and what it returned. That a
device's own recorder does, `tests/contracts/test_cuda.py` asks where there is one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import Mock

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppl_lvm.compiler.backend import cuda_graph
from ppl_lvm.compiler.backend.cuda_graph import CudaGraph, in_one_launch
from ppl_lvm.fitting.svi import fit

Recorded = tuple[Callable[[], None], list[Tensor]]


def record(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    losses = [loss.clone() for loss in function(*inputs)]
    there = [tensor.detach() for tensor in inputs]  # whatever memory the inputs have later

    def replay() -> None:
        for kept, loss in zip(losses, function(*there), strict=True):
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


def record_draws(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """A wrong one, which draws no numbers anew."""
    state = torch.get_rng_state()
    replay, losses = record(function, inputs)

    def replay_without_drawing() -> None:
        now = torch.get_rng_state()
        torch.set_rng_state(state)
        replay()
        torch.set_rng_state(now)

    return replay_without_drawing, losses


def refuse(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise RuntimeError("operation not permitted when stream is capturing")


def mislay(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise AssertionError("expected stride 8==2")  # what compiled code says


def interrupt(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise KeyboardInterrupt


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


def test_nor_where_the_memory_of_one_has_been_replaced() -> None:
    inputs = start()
    step = made(inputs)
    was = inputs[0].detach()
    inputs[0].data = torch.tensor([5.0, 6.0])
    theirs = start()
    theirs[0].copy_(inputs[0])
    for call, given in ((step, inputs), (walk, theirs)):
        torch.manual_seed(0)
        call(*given)
    assert torch.equal(inputs[0], theirs[0])
    assert torch.equal(was, start()[0])


def test_a_batch_lies_as_the_one_that_it_was_made_with() -> None:
    """Compiled code refuses another layout."""
    wide, strides = torch.arange(6.0).view(2, 3), []

    def first_column(position: Tensor, speed: Tensor, batch: Tensor) -> list[Tensor]:
        strides.append(batch.stride())
        return walk(position, speed, batch)

    inputs = (*start()[:2], wide[:, 0])
    step = in_one_launch(first_column, inputs, range(2, 3), inputs[:1])
    assert isinstance(step, CudaGraph)
    assert set(strides) == {(3,)}
    assert step._inputs[2].data_ptr() != wide.data_ptr()
    many = torch.zeros(1).expand(2)  # of which no copy can be written to
    inputs = (*start()[:2], many)
    assert in_one_launch(walk, inputs, range(2, 3), inputs[:1]) is walk


def test_what_it_changes_may_be_a_parameter() -> None:
    position = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    assert isinstance(made((position, *start()[1:])), CudaGraph)
    assert torch.equal(position, start()[0])


def test_an_interruption_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_recorded", interrupt)
    inputs, state = start(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        made(inputs)
    assert all(map(torch.equal, inputs, start()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [record_values, record_draws, refuse, mislay])
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


@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_leaves_its_stream_and_no_workspace(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch is asked for, in which order: its own calls need a device."""
    monkeypatch.undo()
    said: list[str] = []

    @contextmanager
    def saying(what: str) -> Iterator[None]:
        said.append(f"{what} begins")
        try:
            yield
        finally:
            said.append(f"{what} ends")

    @contextmanager
    def graph(recorded: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        with saying("recording"):
            yield
        if fails:  # in `capture_end`, when torch has not yet left the stream
            raise RuntimeError("operation failed due to a previous error during capture")

    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "device", lambda device: saying("device"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: saying("stream"))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    cleared = partial(said.append, "cleared")
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", cleared, raising=False)

    def call(*inputs: Tensor) -> list[Tensor]:
        said.append("called")
        return walk(*inputs)

    with pytest.raises(RuntimeError) if fails else nullcontext():
        cuda_graph._recorded(call, start())
    assert said == [
        *("device begins", "stream begins", "called"),
        *("cleared", "recording begins", "called", "recording ends", "cleared"),
        *("stream ends", "device ends"),
    ]


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

    monkeypatch.setattr(
        "ppl_lvm.compiler.backend.compiled_step.compile_graph", lambda graph, *_: graph
    )
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
