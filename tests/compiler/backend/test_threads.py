"""Threads of small and of large steps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm.compiler import make_training_step
from ppl_lvm.compiler.backend.threads import single_thread_if
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_single_thread_if_restores_the_number_of_threads() -> None:
    with single_thread_if(True):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with single_thread_if(False):
        assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), single_thread_if(True):
        _ = 1 / 0
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("rows", "threads"), [(20, 1), (40_000, 2)])
def test_step_takes_one_thread_if_its_largest_tensor_is_small(
    rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.randn(rows, 1), torch.zeros(1, requires_grad=True)
    used: list[int] = []
    replay = CapturedGradient.replay

    def count_threads(self: CapturedGradient, *args: Any) -> Any:
        used.append(torch.get_num_threads())
        return replay(self, *args)

    def loss_and_grads(x: Tensor) -> Tensor:
        loss = (x * w - 1).square().sum()  # the largest tensor is an input or a result
        loss.backward()
        return loss.detach()

    monkeypatch.setattr(CapturedGradient, "replay", count_threads)
    step = make_training_step(loss_and_grads, torch.optim.Adam([w]), "captured")
    for _ in range(4):
        step(x)
    assert set(used) == {threads}
    assert torch.get_num_threads() == 2


def test_large_input_of_one_kind_of_arguments_makes_all_steps_large() -> None:
    x, w = torch.randn(40_000), torch.zeros((), requires_grad=True)

    def loss_and_grads(x: Tensor) -> Tensor:
        loss = x.sum() * w
        loss.backward()
        return loss.detach()

    step = make_training_step(loss_and_grads, torch.optim.Adam([w]), "captured")
    for _ in range(3):
        step(x)
    assert not step.gradient.small
    for _ in range(3):
        step(x[:20].clone())
    assert not step.gradient.small  # of all kinds of arguments
