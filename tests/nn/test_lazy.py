"""LazilySized: sizes from arguments, batches and states."""

import copy
from typing import Any

import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.nn.lazy import LazilySized


class Scale(LazilySized, PyroModule):
    def __init__(self, observed: int | None = None) -> None:
        super().__init__()
        self.set_sizes(observed)

    def resize(self, observed: int, **like: Any) -> None:
        self.scale = PyroParam(torch.ones(observed, **like), constraints.positive)
        self.register_buffer("center", torch.zeros(observed))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["center"]),)


def test_first_batch_sets_sizes_and_dtype_of_the_whole_module() -> None:
    module = Scale()
    assert not module.is_sized
    module.infer_sizes(torch.zeros(4, 3, dtype=torch.float64))
    assert module.is_sized
    assert module.observed == 3
    assert module.scale.dtype == module.center.dtype == torch.float64


def test_second_batch_changes_nothing() -> None:
    module = Scale(3)
    scale = module.scale_unconstrained
    module.infer_sizes(torch.zeros(2, 3, dtype=torch.float64))
    assert module.scale_unconstrained is scale
    assert scale.dtype == torch.float32


def test_state_loads_before_the_first_batch() -> None:
    source = Scale(3).double()
    source.scale = torch.tensor([1.0, 2.0, 3.0]).double()
    outer = torch.nn.ModuleDict({"part": Scale()})
    outer.load_state_dict({f"part.{name}": t for name, t in source.state_dict().items()})
    part: Any = outer["part"]
    torch.testing.assert_close(part.scale, source.scale)
    assert part.observed == 3


def test_state_from_before_the_first_batch_loads_into_an_unsized_module() -> None:
    module = Scale()
    module.load_state_dict(Scale().state_dict())
    assert not module.is_sized


def test_copy_keeps_sizes_and_shares_nothing() -> None:
    module = Scale(3)
    twin = copy.deepcopy(module)
    assert twin.observed == 3
    assert twin.scale_unconstrained is not module.scale_unconstrained
    early = copy.deepcopy(Scale())
    early.infer_sizes(torch.zeros(2, 5))
    assert early.observed == 5


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            torch.zeros(2, 4),
            r"Scale takes rows \(N, 3\), got \(2, 4\). .* build it with observed=4",
        ),
        (torch.zeros(4), r"One column is x.unsqueeze\(1\)"),
        (torch.zeros(2, 3, 1), r"Flatten it: x.flatten\(1\)"),
        (torch.zeros(2, 3).long(), r"floating-point numbers, got torch.int64. Pass x.float\(\)"),
    ],
)
def test_batch_of_another_shape_or_dtype_is_rejected(batch: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scale(3).infer_sizes(batch)


def test_rejected_first_batch_leaves_the_module_unsized() -> None:
    module = Scale()
    with pytest.raises(ValueError, match="takes rows"):
        module.infer_sizes(torch.zeros(4))
    assert not module.is_sized
