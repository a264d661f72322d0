"""Whole steps: one loop at every level, and what happens where compiling cannot be had."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm.compiler import CannotCaptureError, make_step, make_training_step, make_update
from ppl_lvm.compiler import policy as plan_module
from ppl_lvm.compiler.backend import compiled_step as compiled

LEVELS: list[Any] = ["eager", "auto", "captured", "compiled"]


def problem() -> tuple[list[Tensor], Any, Tensor]:
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

    return [w, c, unused], (loss_and_grads, weight), x


def whole(level: Any, steps: int = 30) -> tuple[list[float], list[Tensor]]:
    parameters, (loss_and_grads, weight), x = problem()
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    step = make_training_step(loss_and_grads, optimizer, level, announce=lambda line: None)
    got = []
    for i in range(steps):
        weight.fill_(1.0 + i)
        loss, largest = step(x if i % 3 else x[:11])
        got += [float(loss), float(largest)]
        schedule.step()
    return got, parameters


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_loop_with_schedule_clipping_and_annealing_is_the_same_at_every_level(level: Any) -> None:
    expected, theirs = whole("eager")
    got, ours = whole(level)
    assert got == pytest.approx(expected, rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_halves_make_the_whole() -> None:
    expected, _ = whole("eager")
    parameters, (loss_and_grads, weight), x = problem()
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    gradient = make_step(loss_and_grads, parameters, "captured")
    update = make_update(optimizer)
    got = []
    for i in range(30):
        weight.fill_(1.0 + i)
        loss, largest = gradient(x if i % 3 else x[:11])
        got += [float(loss), float(largest)]
        update()
        schedule.step()
    assert got == pytest.approx(expected, rel=1e-5)


def test_auto_compiles_once_captured_steps_have_cost_what_compiling_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "_COST", (1e-4, 0.0))
    expected, _ = whole("eager")
    said: list[str] = []
    parameters, (loss_and_grads, weight), x = problem()
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    step = make_training_step(loss_and_grads, optimizer, "auto", announce=said.append)
    got = []
    for i in range(30):
        weight.fill_(1.0 + i)
        got += [float(v) for v in step(x if i % 3 else x[:11])]
        schedule.step()
    assert got == pytest.approx(expected, rel=1e-5)
    assert any("Compiling" in line for line in said)


def _no_compiler(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no C++ compiler")


def test_without_a_compiler_captured_serves_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "_COST", (0.0, 0.0))
    monkeypatch.setattr(compiled, "compile_graph", _no_compiler)
    expected, _ = whole("eager")
    said: list[str] = []
    parameters, (loss_and_grads, weight), x = problem()
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    step = make_training_step(loss_and_grads, optimizer, "auto", announce=said.append)
    got = []
    for i in range(30):
        weight.fill_(1.0 + i)
        got += [float(v) for v in step(x if i % 3 else x[:11])]
        schedule.step()
    assert got == pytest.approx(expected, rel=1e-5)
    assert len([line for line in said if "no C++ compiler" in line]) == 1


def test_without_a_compiler_asking_for_compiled_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "compile_graph", _no_compiler)
    with pytest.raises(CannotCaptureError, match=r"no C\+\+ compiler"):
        whole("compiled")


def test_a_compiled_step_that_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin: a compiler that doubles every loss."""
    from torch._inductor import compile_fx as inductor

    def wrong(graph: Any, example: Any) -> Any:
        return lambda *flat: [2 * out for out in graph(*flat)]

    monkeypatch.setattr(inductor, "compile_fx", wrong)
    with pytest.raises(CannotCaptureError, match="differs from the captured one"):
        whole("compiled")


@pytest.mark.parametrize(("error", "refused"), [(0.0, False), (0.01, True)])
def test_rounding_at_an_optimum_is_no_difference_and_a_wrong_gradient_is(
    error: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the gradient is rounding error; the wrong twin's is also wrong by one part in 100."""
    m = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    x = torch.tensor([[1.0, 3.0], [2.0, 4.0]])

    def loss_and_grads(x: Tensor) -> Tensor:
        loss = ((x - m) ** 2).sum()
        loss.backward()
        return loss.detach()

    def other(graph: Any, inputs: Any, same_random: bool) -> Any:
        def run(*flat: Tensor) -> Any:
            before = flat[1].clone()
            out = graph(*flat)
            flat[1].add_((flat[1] - 0.5 * before) * error + 1e-6)  # of the momentum
            return out

        return run

    optimizer = torch.optim.SGD([m], lr=0.1, momentum=0.5)
    step = make_training_step(loss_and_grads, optimizer, "captured")
    for _ in range(200):
        step(x)
    assert torch.allclose(m, x.mean(0))
    monkeypatch.setattr(compiled, "compile_graph", other)
    arguments, recording = step.gradient.lookup((x,), {})
    assert recording is not None
    found = step._trace(arguments, recording)
    assert found is not None
    if refused:
        with pytest.raises(RuntimeError, match="differs from the captured one"):
            found.compile(arguments.tensors, same_random=True)
    else:
        found.compile(arguments.tensors, same_random=True)
