"""CUDA graphs, with a recorder that needs no device.

It keeps what a CUDA graph keeps: the addresses of a call's tensors and its results.
`tests/contracts/test_cuda.py` tests a device's recorder where a device exists.
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
from ppl_lvm.compiler.backend.cuda_graph import CudaGraph, as_cuda_graph
from ppl_lvm.fitting.svi import fit

Recorded = tuple[Callable[[], None], list[Tensor]]


def record(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    losses = [loss.clone() for loss in function(*inputs)]
    addresses = [tensor.detach() for tensor in inputs]  # also where the inputs move later

    def replay() -> None:
        for static, loss in zip(losses, function(*addresses), strict=True):
            static.copy_(loss)

    return replay, losses


def record_values(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """A wrong one, which keeps the values of the tensors."""
    values = [tensor.clone() for tensor in inputs]
    losses = [loss.clone() for loss in function(*inputs)]

    def replay() -> None:
        for static, loss in zip(losses, function(*[t.clone() for t in values]), strict=True):
            static.copy_(loss)

    return replay, losses


def record_draws(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """A wrong one, which repeats its random numbers."""
    state = torch.get_rng_state()
    replay, losses = record(function, inputs)

    def replay_without_drawing() -> None:
        now = torch.get_rng_state()
        torch.set_rng_state(state)
        replay()
        torch.set_rng_state(now)

    return replay_without_drawing, losses


def fail(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise RuntimeError("operation not permitted when stream is capturing")


def reject_layout(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise AssertionError("expected stride 8==2")  # the message of compiled code


def interrupt(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    function(*inputs)
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _cpu_as_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda_graph, "_capture", record)


def move(position: Tensor, speed: Tensor, batch: Tensor) -> list[Tensor]:
    """A random step with a drift."""
    position.add_(speed * batch.sum() + torch.randn(()))
    return [(position**2).sum()]


def start() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor([1.0, 2.0]), torch.tensor(0.5), torch.tensor([3.0, 4.0])


def launch(inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    return as_cuda_graph(move, inputs, range(2, 3), inputs[:1])


def test_capture_changes_no_tensor_and_draws_no_number() -> None:
    inputs, state = start(), torch.get_rng_state()
    assert isinstance(launch(inputs), CudaGraph)
    assert all(map(torch.equal, inputs, start()))
    assert torch.equal(state, torch.get_rng_state())


def test_replay_reads_each_batch_and_each_number_and_keeps_the_callers_tensors() -> None:
    ours, theirs = start(), start()
    step = launch(ours)
    results: list[Tensor] = []
    expected: list[Tensor] = []
    for turn in range(4):
        batch = torch.full((2,), float(turn))
        for inputs, call, losses in ((ours, step, results), (theirs, move, expected)):
            torch.manual_seed(turn)
            inputs[1].fill_(0.1 * turn)
            losses += call(*inputs[:2], batch)
        assert batch.eq(turn).all()
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(torch.stack(results), torch.stack(expected))  # none was overwritten
    assert torch.equal(ours[2], start()[2])


def test_replay_is_skipped_for_another_tensor() -> None:
    inputs = start()
    step = launch(inputs)
    torch.manual_seed(0)
    loss = step(torch.zeros(2), *inputs[1:])
    torch.manual_seed(0)
    assert torch.equal(loss[0], move(torch.zeros(2), *inputs[1:])[0])
    assert torch.equal(inputs[0], start()[0])


def test_replay_is_skipped_when_the_memory_of_a_tensor_is_replaced() -> None:
    inputs = start()
    step = launch(inputs)
    was = inputs[0].detach()
    inputs[0].data = torch.tensor([5.0, 6.0])
    theirs = start()
    theirs[0].copy_(inputs[0])
    for call, tensors in ((step, inputs), (move, theirs)):
        torch.manual_seed(0)
        call(*tensors)
    assert torch.equal(inputs[0], theirs[0])
    assert torch.equal(was, start()[0])


def test_static_batch_has_the_layout_of_the_first_batch() -> None:
    """Compiled code rejects another layout."""
    wide, strides = torch.arange(6.0).view(2, 3), []

    def first_column(position: Tensor, speed: Tensor, batch: Tensor) -> list[Tensor]:
        strides.append(batch.stride())
        return move(position, speed, batch)

    inputs = (*start()[:2], wide[:, 0])
    step = as_cuda_graph(first_column, inputs, range(2, 3), inputs[:1])
    assert isinstance(step, CudaGraph)
    assert set(strides) == {(3,)}
    assert step._inputs[2].data_ptr() != wide.data_ptr()
    many = torch.zeros(1).expand(2)  # no copy with these strides can be written
    inputs = (*start()[:2], many)
    assert as_cuda_graph(move, inputs, range(2, 3), inputs[:1]) is move


def test_changed_tensor_may_be_a_parameter() -> None:
    position = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    assert isinstance(launch((position, *start()[1:])), CudaGraph)
    assert torch.equal(position, start()[0])


def test_interrupted_capture_restores_tensors_and_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graph, "_capture", interrupt)
    inputs, state = start(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        launch(inputs)
    assert all(map(torch.equal, inputs, start()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [record_values, record_draws, fail, reject_layout])
def test_graph_with_other_results_or_a_failed_capture_is_not_used(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "_capture", wrong)
    inputs, state = start(), torch.get_rng_state()
    assert launch(inputs) is move
    assert all(map(torch.equal, inputs, start()))
    assert torch.equal(state, torch.get_rng_state())


def test_step_that_reads_a_number_of_the_processor_is_not_captured() -> None:
    """The other tensors are on another device."""
    inputs = [torch.zeros(2, device="meta"), torch.tensor(0.5), torch.zeros(2, device="meta")]
    assert launch(inputs) is move


@pytest.mark.parametrize("fails", [False, True])
def test_capture_leaves_its_stream_and_no_workspace(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of torch and their order; they need a device themselves."""
    monkeypatch.undo()
    events: list[str] = []

    @contextmanager
    def log(name: str) -> Iterator[None]:
        events.append(f"{name} begins")
        try:
            yield
        finally:
            events.append(f"{name} ends")

    @contextmanager
    def graph(captured: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        with log("capture"):
            yield
        if fails:  # in `capture_end`, before torch leaves the stream
            raise RuntimeError("operation failed due to a previous error during capture")

    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "device", lambda device: log("device"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: log("stream"))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    cleared = partial(events.append, "cleared")
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", cleared, raising=False)

    def call(*inputs: Tensor) -> list[Tensor]:
        events.append("called")
        return move(*inputs)

    with pytest.raises(RuntimeError) if fails else nullcontext():
        cuda_graph._capture(call, start())
    assert events == [
        *("device begins", "stream begins", "called"),
        *("cleared", "capture begins", "called", "capture ends", "cleared"),
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


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 10])
@pytest.mark.parametrize("rows", [None, 16])
def test_run_with_annealing_and_a_schedule_takes_the_same_steps_with_graphs(
    steps_per_call: int, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that changes between steps reaches the graph: batch, KL weight, learning rate, draws."""
    replays = []

    def record_and_count(
        function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
    ) -> Recorded:
        replay, losses = record(function, inputs)
        return lambda: [replays.append(1), replay()][1], losses  # type: ignore[func-returns-value]

    monkeypatch.setattr(
        "ppl_lvm.compiler.backend.compiled_step.compile_graph", lambda graph, *_: graph
    )
    x = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))

    def history(recorder: Any) -> list[float]:
        monkeypatch.setattr(cuda_graph, "_capture", recorder)
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        options: dict[str, Any] = {"num_steps": 40, "batch_size": rows, "kl_annealing": 20}
        options |= {"schedule": "StepLR(step_size=15, gamma=0.3)", "progress": False}
        options |= {"engine": "compiled", "steps_per_call": steps_per_call}
        bounds: list[float] = fit(_model, _guide, x, **options).history["bound"]
        return bounds

    expected = history(fail)
    assert not replays
    assert history(record_and_count) == expected
    assert len(replays) >= 38  # the program runs the first step; one replay is the check
