"""Small steps are taken by one thread, large ones by as many as there are."""

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
def test_one_thread_is_for_as_long_as_asked() -> None:
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
def test_threads_go_by_the_largest_tensor(
    rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.randn(rows, 1), torch.zeros(1, requires_grad=True)
    used: list[int] = []
    replay = CapturedGradient._replay

    def spy(self: CapturedGradient, *args: Any) -> Any:
        used.append(torch.get_num_threads())
        return replay(self, *args)

    def loss_and_grads(x: Tensor) -> Tensor:
        loss = (x * w - 1).square().sum()  # the largest tensor is read or made, by size
        loss.backward()
        return loss.detach()

    monkeypatch.setattr(CapturedGradient, "_replay", spy)
    step = make_training_step(loss_and_grads, torch.optim.Adam([w]), "captured")
    for _ in range(4):
        step(x)
    assert set(used) == {threads}
    assert torch.get_num_threads() == 2


def test_what_is_only_read_counts() -> None:
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
