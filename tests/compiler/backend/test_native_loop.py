"""Steps in C++ against steps in Python."""

import signal
from typing import Any
from unittest.mock import patch

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.compiler.backend import native_loop
from ppl_lvm.compiler.backend.native_loop import make_native_loop


class Interruption(BaseException):
    """Raised by the handler of a signal."""


def model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def guide(x: Tensor, y: Tensor) -> None:
    mean = pyro.param("mean", torch.zeros(x.shape[1]))
    scale = pyro.param("scale", torch.ones(x.shape[1]), constraint=dist.constraints.positive)
    pyro.sample("w", dist.Normal(mean, scale).to_event(1))


def compiled_svi(optimizer: Any = None) -> tuple[CompiledSVI, Any]:
    """SVI after a few steps on `batch()`, and its compiled step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimizer = optimizer or pyro.optim.Adam({"lr": 0.02})
    svi = CompiledSVI(model, guide, optimizer, Trace_ELBO(), engine="compiled")
    for _ in range(4):
        svi.step(*[d[:5] for d in batch()])
    (step,) = svi.training_step.compiled_steps
    assert step.native_loop is not None
    return svi, step


def batch() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, generator=generator)
    return [x, x.sum(1)]


def rows_of(count: int) -> Tensor:
    return torch.randint(0, 20, (count, 5), generator=torch.Generator().manual_seed(2))


def state(step: Any) -> list[Tensor]:
    return [*(t.clone() for t in step.state), torch.get_rng_state()]


OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.02}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.9}),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_in_cpp_equal_steps_in_python_bit_for_bit(optimizer: str) -> None:
    results = []
    for native in (True, False):
        svi, step = compiled_svi(OPTIMIZERS[optimizer]())
        if not native:
            step.native_loop = None
        losses = svi.steps(*batch(), rows=rows_of(9))
        losses += svi.steps(
            *[d.mT.contiguous().mT for d in batch()[:1]], batch()[1], rows=rows_of(2)
        )
        losses += [svi.step(*[d[r] for d in batch()]) for r in rows_of(3)]
        results.append((losses, state(step), step.count, step.groups[0].options["lr"]))
    (ours, moved, *counts), (theirs, expected, *counted) = results
    assert ours == theirs
    assert counts == counted
    assert all(map(torch.equal, moved, expected))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["Adam", "ClippedAdam"])
def test_failing_steps_leave_those_before(optimizer: str) -> None:
    svi, step = compiled_svi(OPTIMIZERS[optimizer]())
    rows = rows_of(6)
    rows[4, 1] = -1
    with pytest.raises(RuntimeError, match="index out of range"):
        svi.training_step.run_steps(batch(), rows, 6)
    stopped = (state(step), step.count, step.groups[0].options["lr"])
    svi, step = compiled_svi(OPTIMIZERS[optimizer]())
    svi.training_step.run_steps(batch(), rows[:4], 4)
    assert all(map(torch.equal, stopped[0], state(step)))
    assert stopped[1:] == (step.count, step.groups[0].options["lr"])


@pytest.mark.slow
def test_signals_end_steps_between_two() -> None:
    svi, step = compiled_svi()
    before = step.count

    def interrupt(*_: Any) -> None:
        raise Interruption

    def take_calls() -> None:
        for _ in range(1_000):
            svi.training_step.run_steps(batch(), rows, len(rows))

    rows = rows_of(5_000)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interruption):
            take_calls()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    calls, rest = divmod(step.count - before, len(rows))
    stopped = state(step)
    svi, step = compiled_svi()
    for part in [*[rows] * calls, rows[:rest]]:
        if len(part):
            svi.training_step.run_steps(batch(), part, len(part))
    assert all(map(torch.equal, stopped, state(step)))


@pytest.mark.slow
def test_steps_are_taken_in_python_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    svi, _ = compiled_svi()
    expected = svi.steps(*batch(), rows=rows_of(3))
    monkeypatch.setattr(native_loop, "_run_steps", lambda: 1 / 0)
    with patch(f"{__name__}.native_loop.logger.info"), pytest.raises(AssertionError):
        compiled_svi()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(), engine="compiled")
    for _ in range(4):
        svi.step(*[d[:5] for d in batch()])
    assert svi.steps(*batch(), rows=rows_of(3)) == expected


def test_functions_of_python_have_no_native_loop() -> None:
    x = torch.ones(3)
    state = torch.get_rng_state()
    assert make_native_loop(lambda x: [torch.randn(())], [x], range(1), []) is None
    assert torch.equal(state, torch.get_rng_state())
    assert make_native_loop(lambda x: [x], [torch.ones(3, device="meta")], range(1), []) is None
