"""Training steps at every level."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm.compiler import CannotCaptureError, CapturedGradient, make_training_step
from ppl_lvm.compiler.backend import compiled_step
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatOptimizer
from ppl_lvm.compiler.policy import BreakEvenPolicy, CostModel
from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.core.levels import LEVELS, Level

STEPS = 30


def problem() -> tuple[list[Tensor], Any, Tensor, Tensor]:
    """Parameters, `loss_and_grads`, the weight of the loss, rows."""
    torch.manual_seed(0)
    w = torch.randn(3, requires_grad=True)
    c = torch.zeros((), requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    x = torch.randn(20, 3)
    weight = torch.ones(())

    def loss_and_grads(x: Tensor) -> Any:
        noise = 0.1 * torch.randn(len(x))
        loss = weight * ((x @ w + c - 1 + noise) ** 2).sum()
        loss.backward()
        assert w.grad is not None
        assert c.grad is not None
        torch._foreach_mul_([w.grad, c.grad], 1 / len(x))
        torch.nn.utils.clip_grad_norm_([w, c], 0.8)
        return loss.detach(), torch.stack([w.grad.abs().max(), c.grad.abs()]).max()

    return [w, c, unused], loss_and_grads, weight, x


def run(make_step: Callable[[Any, Any, list[Tensor]], Any]) -> tuple[list[float], list[Tensor]]:
    """Losses and largest gradients of 30 steps with a schedule and annealing; the parameters."""
    parameters, loss_and_grads, weight, x = problem()
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    step = make_step(loss_and_grads, optimizer, parameters)
    values: list[float] = []
    for i in range(STEPS):
        weight.fill_(1.0 + i)
        values += [float(v) for v in step(x if i % 3 else x[:11])]
        schedule.step()
    return values, parameters


def run_level(level: Level, **options: Any) -> tuple[list[float], list[Tensor]]:
    options.setdefault("announce", lambda line: None)
    return run(
        lambda function, optimizer, _: make_training_step(function, optimizer, level, **options)
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "eager"])
def test_loop_with_schedule_clipping_and_annealing_is_the_same_at_every_level(level: Level) -> None:
    expected, expected_parameters = run_level("eager")
    values, parameters = run_level(level)
    assert values == pytest.approx(expected, rel=1e-5)
    for a, b in zip(parameters, expected_parameters, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_captured_gradient_and_flat_optimizer_take_the_eager_steps() -> None:
    def make_step(function: Any, optimizer: Any, parameters: list[Tensor]) -> Any:
        gradient = CapturedGradient(function, parameters, strict=True)
        adapter, flat = TorchOptimizerAdapter(optimizer), FlatOptimizer()

        def step(x: Tensor) -> Any:
            losses = gradient(x)
            slots = adapter.parameter_slots([p for p in parameters if p.grad is not None])
            assert flat.step(slots or [])
            return losses

        return step

    assert run(make_step)[0] == pytest.approx(run_level("eager")[0], rel=1e-5)


@pytest.mark.slow
def test_auto_compiles_once_captured_steps_have_cost_as_much_as_compiling() -> None:
    expected, _ = run_level("eager")
    lines: list[str] = []
    costs = CostModel(compile_seconds=1e-4, compile_seconds_per_node=0.0)
    values, _ = run_level("auto", announce=lines.append, plan=BreakEvenPolicy(costs))
    assert values == pytest.approx(expected, rel=1e-5)
    assert any("Compiling" in line for line in lines)


def _no_compiler(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no C++ compiler")


def test_auto_stays_captured_and_announces_once_when_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_step, "compile_graph", _no_compiler)
    expected, _ = run_level("eager")
    lines: list[str] = []
    free = BreakEvenPolicy(CostModel(compile_seconds=0.0, compile_seconds_per_node=0.0))
    values, _ = run_level("auto", announce=lines.append, plan=free)
    assert values == pytest.approx(expected, rel=1e-5)
    assert len([line for line in lines if "no C++ compiler" in line]) == 1


def test_compiled_level_raises_when_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_step, "compile_graph", _no_compiler)
    with pytest.raises(CannotCaptureError, match=r"no C\+\+ compiler"):
        run_level("compiled")


def test_compiled_level_raises_when_the_compiled_step_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wrong twin: a compiler that doubles every loss."""
    from torch._inductor import compile_fx as inductor

    def wrong(graph: Any, example: Any) -> Any:
        return lambda *flat: [2 * out for out in graph(*flat)]

    monkeypatch.setattr(inductor, "compile_fx", wrong)
    with pytest.raises(CannotCaptureError, match="differs from the captured one"):
        run_level("compiled")


@pytest.mark.parametrize("level", ["eager", "captured"])
def test_step_with_a_nan_result_raises_and_changes_no_parameter(level: Level) -> None:
    w = torch.ones(2, requires_grad=True)

    def loss_and_grads(x: Tensor) -> Tensor:
        loss = (w * x).sum() ** 2
        loss.backward()
        return loss.detach()

    optimizer = torch.optim.Adam([w], lr=0.1)
    step = make_training_step(loss_and_grads, optimizer, level, finite=True, capture_first=True)
    for _ in range(3):
        step(torch.ones(2))
    before = w.detach().clone()
    with pytest.raises(NonFiniteError, match="not finite"):
        step(torch.tensor([1.0, torch.nan]))
    assert torch.equal(w, before)


@pytest.mark.parametrize("level", ["eager", "captured"])
def test_training_step_without_gradients_changes_no_parameter(level: Level) -> None:
    """Also where the function finds gradients in spite of `torch.no_grad`."""
    parameters, loss_and_grads, _, x = problem()

    def always_finds_gradients(x: Tensor) -> Any:
        with torch.enable_grad():
            return loss_and_grads(x)

    optimizer = torch.optim.Adam(parameters, lr=0.05)
    step = make_training_step(always_finds_gradients, optimizer, level, capture_first=True)
    for _ in range(4):
        step(x)
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        step(x)
        assert step.run_steps([x], None, 3) is None
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
    step(x)
    assert not torch.equal(parameters[0], before[0])


def steps_of_two_groups(level: Level, per_call: int) -> list[Tensor]:
    """Parameters after 12 steps from 1; the first group's rate stays, the second's decays."""
    stays, decays = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [stays]}, {"params": [decays]}], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1.0, lambda t: 0.5**t])

    def loss_and_grads(x: Tensor) -> Any:
        loss = (x * (stays**2 + decays**2)).sum() / 2
        loss.backward()
        return loss.detach()

    options: dict[str, Any] = {"announce": lambda line: None, "capture_first": True}
    step = make_training_step(loss_and_grads, optimizer, level, **options)
    x, taken = torch.ones(2), 0
    while taken < 12:
        if per_call > 1:
            assert step.run_steps([x], None, per_call, after_each=schedule.step) is not None
        else:
            step(x)
            schedule.step()
        taken += per_call
    assert step.active_level == level
    return [stays.detach(), decays.detach()]


@pytest.mark.parametrize(
    ("level", "per_call"),
    [
        ("eager", 1),
        ("captured", 1),
        pytest.param("compiled", 1, marks=pytest.mark.slow),
        pytest.param("compiled", 3, marks=pytest.mark.slow),
    ],
)
def test_groups_whose_rates_diverge_take_their_rates_at_every_step(
    level: Level, per_call: int
) -> None:
    stays, decays = steps_of_two_groups(level, per_call)
    assert stays.tolist() == pytest.approx([0.9**12] * 2, rel=1e-5)
    rates = [0.1 * 0.5**t for t in range(12)]
    assert decays.tolist() == pytest.approx([math.prod(1 - r for r in rates)] * 2, rel=1e-5)
