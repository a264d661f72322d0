"""Captured gradients: correct captures, and refusals by reason and line."""

import math
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from ppl_lvm.compiler import CannotCaptureError, CapturedGradient, CompiledSVI


def guide(x: Tensor, *rest: Any) -> None:
    loc = pyro.param("q_loc", torch.zeros(3))
    scale = pyro.param("q_scale", torch.ones(3), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def likelihood(x: Tensor, z: Tensor, scale: Any = 1.0) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


def prior() -> Tensor:
    z: Tensor = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    return z


def data(rows: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows), dtype=dtype)


def run(model: Any, batches: list[tuple[Any, ...]], engine: Any, **options: Any) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimizer = pyro.optim.Adam({"lr": 0.05})
    if engine is None:
        plain = SVI(model, guide, optimizer, Trace_ELBO())
        return [plain.step(*b) for b in batches]
    svi = CompiledSVI(model, guide, optimizer, Trace_ELBO(), engine=engine, **options)
    return [svi.step(*b) for b in batches]


# Refusals. Each model does one thing that a captured step would freeze.


def branches(x: Tensor) -> None:
    z = prior()
    if z[0] > 0:  # BLAME
        z = z * 2
    likelihood(x, z)


def item_decides(x: Tensor) -> None:
    z = prior()
    likelihood(x, z, 1.0 if z.sum().item() > 0 else 2.0)  # BLAME


def goes_to_python(x: Tensor) -> None:
    z = prior()
    likelihood(x, z, math.exp(0.1 * z[0].item()))  # BLAME


def goes_to_numpy(x: Tensor) -> None:
    z = prior()
    likelihood(x, z, 1.0 + float(np.abs(z.detach().numpy()).sum()))  # BLAME


def goes_to_numpy_through_dlpack(x: Tensor) -> None:
    likelihood(x, prior(), 1.0 + float(np.abs(np.from_dlpack(x)).max()))  # BLAME


def counts_the_data(x: Tensor) -> None:
    """As a tensor the count would turn the location 0.5 into the integer 0."""
    likelihood(x, prior())
    pyro.sample("o", dist.Normal(0.5, (x[:, 0] > 0).sum().item()), obs=torch.ones(()))  # BLAME


def reads_doubles(x: Tensor) -> None:
    """As a tensor the scale would make the draw one of doubles, which is another draw."""
    noise = dist.Normal(0.0, x.double().std().item()).sample((len(x), 3))  # BLAME
    likelihood(x + noise, prior())


def selects(x: Tensor) -> None:
    z = prior()
    pyro.factor("f", z[z > 0].sum())  # BLAME
    likelihood(x, z)


def draws_numpy(x: Tensor) -> None:
    likelihood(x, prior(), 1.0 + np.random.rand())


def draws_python(x: Tensor) -> None:
    likelihood(x, prior(), 1.0 + random.random())


class Counts(PyroModule):
    steps = 0

    def forward(self, x: Tensor) -> None:
        self.steps += 1
        likelihood(x, prior())


class Anneals(PyroModule):
    """Keeps its counter where no attribute shows it; the number shows on the tape."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden = [0.0]

    def forward(self, x: Tensor) -> None:
        self._hidden[0] += 1e-6
        likelihood(x, prior() * (1.0 + self._hidden[0]))  # BLAME


class Replaces(PyroModule):
    """Replaces a tensor by one created from NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = np.ones(3, dtype=np.float32)

    def forward(self, x: Tensor) -> None:
        self.table = self.table * 1.01
        likelihood(x, prior(), torch.from_numpy(self.table))  # BLAME


class CountsInList(PyroModule):
    """Counts in an entry of a list, which makes a difference only later."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: Tensor) -> None:
        self.calls[0] += 1
        likelihood(x, prior(), 1.0 if self.calls[0] < 8 else 2.0)


def counts_within_a_handler() -> Any:
    calls = 0

    def model(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        likelihood(x, prior(), 1.0 if calls < 8 else 2.0)

    return pyro.poutine.scale(model, scale=0.5)


def fills_through_numpy() -> Any:
    memory = np.zeros(3, dtype=np.float32)
    table = torch.from_numpy(memory)

    def model(x: Tensor) -> None:
        memory[:] = 0.9 * memory + 0.1
        likelihood(x, prior() + table)  # BLAME

    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "branch": (lambda: branches, "value of a tensor"),
    "item decides": (lambda: item_decides, "value of a tensor"),
    "python": (lambda: goes_to_python, "value of a tensor"),
    "numpy": (lambda: goes_to_numpy, "value of a tensor"),
    "dlpack": (lambda: goes_to_numpy_through_dlpack, "value of a tensor"),
    "counts data": (lambda: counts_the_data, "value of a tensor"),
    "doubles": (lambda: reads_doubles, "value of a tensor"),
    "selects": (lambda: selects, "shape"),
    "numpy.random": (lambda: draws_numpy, "numpy.random"),
    "random": (lambda: draws_python, "Python's random"),
    "counter": (Counts, "Counts.steps"),
    "count in a list": (CountsInList, "CountsInList.calls[0]"),
    "count in a handler": (counts_within_a_handler, "model.calls"),
    "numpy memory": (fills_through_numpy, "through another name"),
    "annealing": (Anneals, "changes from step to step"),
    "replaced": (Replaces, "change from step to step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_is_announced_with_its_reason_and_the_run_continues_as_pyros(name: str) -> None:
    make, reason = REFUSED[name]
    batches = [(data(),)] * 12
    random.seed(0)
    expected = run(make(), batches, None)
    random.seed(0)
    lines: list[str] = []
    losses = run(make(), batches, "auto", announce=lines.append)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(lines) == 1
    assert reason in lines[0]


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_raises_at_the_captured_level(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(CannotCaptureError, match=re.escape(reason)):
        run(make(), [(data(),)] * 6, "captured")


BLAMED = ["branch", "item decides", "python", "numpy", "selects", "annealing", "replaced"]
BLAMED += ["numpy memory", "dlpack", "counts data", "doubles"]


@pytest.mark.parametrize("name", BLAMED)
def test_refusal_names_the_line_of_the_program(name: str) -> None:
    make, _ = REFUSED[name]
    with pytest.raises(CannotCaptureError) as caught:
        run(make(), [(data(),)] * 6, "captured")
    where = caught.value.where
    assert where is not None
    path, line = where.rsplit(":", 1)
    with open(path) as source:
        assert "BLAME" in source.read().splitlines()[int(line) - 1]


def test_error_of_the_program_is_raised_unchanged() -> None:
    calls = []

    def fails(x: Tensor) -> None:
        calls.append(1)
        z = prior()
        likelihood(x, z if len(calls) < 2 else z @ torch.zeros(4))

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run(fails, [(data(),)] * 6, "auto", announce=lambda line: None)


# State


class Averages(PyroModule):
    """A running mean, changed in place or by binding a new tensor."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        z = prior()
        new = 0.9 * self.mean + 0.1 * z.detach()
        if self.in_place:
            self.mean.copy_(new)
        else:
            self.mean = new
        likelihood(x, z + self.mean)


@pytest.mark.parametrize("in_place", [True, False])
def test_state_is_carried_from_step_to_step_and_visible(in_place: bool) -> None:
    ours, theirs = Averages(in_place), Averages(in_place)
    batches = [(data(),)] * 30
    expected = run(theirs, batches, None)
    losses = run(ours, batches, "captured")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(ours.mean, theirs.mean)


class ReadsThenCounts(PyroModule):
    """Reads the number in its buffer before the buffer is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        before: Any = self.steps.item()
        self.steps += 1
        with pyro.poutine.scale(scale=0.1 + before):
            likelihood(x, prior())


def test_item_keeps_its_value_when_its_tensor_changes() -> None:
    batches = [(data(),)] * 12
    expected = run(ReadsThenCounts(), batches, None)
    assert run(ReadsThenCounts(), batches, "captured") == pytest.approx(expected, rel=1e-5)


def test_rebound_state_with_changing_shapes_takes_pyros_steps() -> None:
    batches = [(data(20 if i % 5 else 7),) for i in range(60)]
    expected = run(Averages(False), batches, None)
    assert run(Averages(False), batches, "auto", announce=lambda line: None) == pytest.approx(
        expected, rel=1e-5
    )


# Arguments


def weighted(x: Tensor, weight: Any = 1.0, extra: Any = None) -> None:
    z = prior()
    with pyro.poutine.scale(scale=weight):
        likelihood(x, z if extra is None else z + extra["shift"].mean())


def test_smaller_last_batch_takes_pyros_steps() -> None:
    batches = [(data(20 if i % 4 else 6),) for i in range(40)]
    assert run(weighted, batches, "captured") == pytest.approx(
        run(weighted, batches, None), rel=1e-5
    )


def test_double_precision_takes_pyros_steps() -> None:
    torch.set_default_dtype(torch.float64)
    batches = [(data(dtype=torch.float64),)] * 20
    expected = run(weighted, batches, None)
    assert run(weighted, batches, "captured") == pytest.approx(expected, rel=1e-12)


def test_nested_and_plain_arguments_take_pyros_steps() -> None:
    batches: list[tuple[Any, ...]] = [
        (data(), 1.0 if i % 2 else 0.5, {"shift": torch.full((2,), float(i))}) for i in range(30)
    ]
    assert run(weighted, batches, "captured") == pytest.approx(
        run(weighted, batches, None), rel=1e-5
    )


def test_changing_tensor_argument_needs_no_new_capture() -> None:
    batches = [(data(), torch.tensor(0.1 * (i + 1))) for i in range(30)]
    expected = run(weighted, batches, None)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimizer = pyro.optim.Adam({"lr": 0.05})
    svi = CompiledSVI(weighted, guide, optimizer, Trace_ELBO(), engine="captured")
    assert [svi.step(*b) for b in batches] == pytest.approx(expected, rel=1e-5)
    assert svi.num_captures == 1


def test_captures_are_bounded_and_the_limit_is_announced_once() -> None:
    batches = [(data(), 1 + i % 6) for i in range(40)]
    lines: list[str] = []
    losses = run(weighted, batches, "auto", announce=lines.append, max_captures=3)
    assert losses == pytest.approx(run(weighted, batches, None), rel=1e-5)
    assert len(lines) == 1
    assert "3 kinds of arguments" in lines[0]


def test_train_and_eval_mode_are_different_captures() -> None:
    class Drops(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> None:
            likelihood(x, self.drop(prior()))

    def losses(engine: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model = Drops()
        optimizer: Any = pyro.optim.Adam({"lr": 0.05})
        svi: Any = (
            SVI(model, guide, optimizer, Trace_ELBO())
            if engine is None
            else CompiledSVI(model, guide, optimizer, Trace_ELBO(), engine=engine)
        )
        values = [svi.step(data()) for _ in range(8)]
        model.eval()
        return values + [svi.step(data()) for _ in range(8)]

    assert losses("captured") == pytest.approx(losses(None), rel=1e-5)


def test_data_tensor_in_the_model_is_not_mistaken_for_the_argument() -> None:
    constant = data(20)

    def model(x: Tensor) -> None:
        likelihood(x, prior() + constant.mean(0))

    batches = [(constant,)] * 5 + [(data(20) + 1.0,)] * 5
    assert run(model, batches, "captured") == pytest.approx(run(model, batches, None), rel=1e-5)


# Loops with another optimizer


def test_captured_gradient_leaves_gradients_and_reads_a_weight_filled_in_place() -> None:
    weight = torch.ones(())

    def losses(captured: bool) -> list[float]:
        pyro.set_rng_seed(0)
        x, loc = data(), torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.RMSprop([loc], lr=0.1)

        def loss_and_grads(x: Tensor) -> Tensor:
            z = loc + torch.randn(3)
            loss = weight * ((x - z) ** 2).sum() / len(x)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([loc], 0.5)
            return loss.detach()

        gradient: Any = loss_and_grads
        if captured:
            gradient = CapturedGradient(loss_and_grads, [loc], strict=True)
        values = []
        for i in range(20):
            weight.fill_(1.0 / (i + 1))
            loc.grad = None
            values.append(float(gradient(x)))
            optimizer.step()
        return values

    assert losses(captured=True) == pytest.approx(losses(captured=False), rel=1e-5)


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_gradient_hook_of_a_program_runs_at_every_step(engine: Any) -> None:
    calls: list[Tensor] = []

    def hooked(x: Tensor) -> None:
        z = prior()
        if z.requires_grad:
            z.register_hook(calls.append)
        likelihood(x, z)

    svi = CompiledSVI(hooked, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), engine=engine)
    for _ in range(8):
        svi.step(data())
    assert len(calls) == 8
    if engine == "auto":
        assert "gradient hook" in (svi.capture_error or "")
        assert "test_captured_gradient.py" in (svi.capture_error or "")


def test_gradient_hook_registered_after_the_capture_runs() -> None:
    svi = CompiledSVI(
        lambda x: likelihood(x, prior()), guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()
    )
    for _ in range(6):
        svi.step(data())
    assert svi.num_captures == 1
    calls: list[Tensor] = []
    pyro.param("q_loc").unconstrained().register_hook(calls.append)
    for _ in range(3):
        svi.step(data())
    assert len(calls) == 3


class _Absolute(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


CALLS: list[int] = []
CHANGES: dict[str, Any] = {
    "halved": lambda m: m.register_forward_hook(lambda module, args, out: out * 0.5),
    "counted": lambda m: m.register_forward_hook(lambda module, args, out: CALLS.append(1)),
    "input": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,)),
    "backward": lambda m: m.register_full_backward_hook(
        lambda module, grads, outs: CALLS.append(1)
    ),
    "before backward": lambda m: m.register_full_backward_pre_hook(
        lambda module, grads: tuple(g * 0.5 for g in grads)
    ),
    "parametrized": lambda m: register_parametrization(m, "weight", _Absolute()),
    "spectral norm": spectral_norm,
}


@pytest.mark.parametrize("at", [pytest.param(0, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("change", CHANGES)
def test_hook_or_parametrization_of_a_module_acts_as_in_pyro(change: str, at: int) -> None:
    """Registered before the first step, or after the capture."""
    results = []
    for make in (SVI, CompiledSVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        CALLS.clear()
        decoder = nn.Linear(3, 3)
        optimizer = pyro.optim.Adam({"lr": 0.02})
        svi = make(_decoded_by(decoder), guide, optimizer, Trace_ELBO())
        for step in range(10):
            if step == at:
                CHANGES[change](decoder)
            svi.step(data())
        results.append((torch.cat([p.flatten() for p in decoder.parameters()]), len(CALLS)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert results[0][1] == results[1][1]


def _decoded_by(decoder: nn.Module) -> Any:
    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        likelihood(x, decoder(prior()))

    return model
