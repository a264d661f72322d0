"""Flat vectors: parameters that share one, and changed options."""

from functools import partial
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from ppl_lvm.compiler.optim.adapters import PyroOptimizerAdapter, TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatGroup, FlatOptimizer


def plan(flat: FlatOptimizer, optimizer: Any, parameters: list[Tensor]) -> list[FlatGroup]:
    slots = TorchOptimizerAdapter(optimizer).parameter_slots(parameters)
    assert slots is not None
    groups = flat.plan(slots)
    assert groups is not None
    return groups


def two_groups(make: Any) -> tuple[Any, list[Tensor]]:
    parameters = [torch.ones(2, requires_grad=True) for _ in range(2)]
    return make([{"params": [p]} for p in parameters]), parameters


def test_groups_of_one_optimizer_read_their_own_rate_within_a_call() -> None:
    optimizer, parameters = two_groups(partial(SGD, lr=1.0))
    schedule = LambdaLR(optimizer, [lambda t: 1.0, lambda t: 0.5**t])
    groups = plan(FlatOptimizer(), optimizer, parameters)
    rates = []
    for _ in range(3):
        rates.append([group.scalars()[-1] for group in groups])
        schedule.step()
    assert rates == [[1.0, 1.0], [1.0, 0.5], [1.0, 0.25]]


def test_parameters_of_one_group_or_of_equal_pyro_optimizers_share_a_vector() -> None:
    """Pyro has one optimizer per parameter: one vector each would be slow."""
    parameters = [torch.ones(2, requires_grad=True) for _ in range(3)]
    assert len(plan(FlatOptimizer(), SGD(parameters, lr=1.0), parameters)) == 1
    optimizer = pyro.optim.Adam({"lr": 0.1})
    for p in parameters:
        p.grad = torch.ones(2)
    optimizer(parameters)
    slots = PyroOptimizerAdapter(optimizer).parameter_slots(parameters)
    assert slots is not None
    assert len(FlatOptimizer().plan(slots) or []) == 1


@pytest.mark.parametrize(("option", "value"), [("eps", 1.0), ("weight_decay", 0.5)])
def test_changed_constant_option_is_laid_out_again(option: str, value: float) -> None:
    parameter = torch.ones(2, requires_grad=True)
    optimizer, flat = Adam([parameter], lr=0.1), FlatOptimizer()
    groups = plan(flat, optimizer, [parameter])
    assert plan(flat, optimizer, [parameter]) is groups
    optimizer.param_groups[0][option] = value
    assert plan(flat, optimizer, [parameter]) is not groups


def test_schedule_of_rate_and_momentum_keeps_the_layout() -> None:
    optimizer, parameters = two_groups(partial(Adam, lr=0.1))
    schedule = OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=10)  # betas too
    flat = FlatOptimizer()
    groups = plan(flat, optimizer, parameters)
    for _ in range(5):
        schedule.step()
        assert plan(flat, optimizer, parameters) is groups


def test_scheduled_weight_decay_keeps_the_layout_and_is_read_at_each_step() -> None:
    optimizer, parameters = two_groups(partial(SGD, lr=1.0, weight_decay=0.5))
    flat = FlatOptimizer()
    groups = plan(flat, optimizer, parameters)
    optimizer.param_groups[1]["weight_decay"] = 0.25
    assert plan(flat, optimizer, parameters) is groups
    assert [group.scalars()[0] for group in groups] == [0.5, 0.25]


@pytest.mark.parametrize("option", ["weight_decay", "momentum"])
def test_option_that_becomes_zero_within_a_call_is_refused(option: str) -> None:
    """A compiled step contains the branch; the next call is laid out again."""
    optimizer, parameters = two_groups(partial(SGD, lr=1.0, **{option: 0.5}))
    flat = FlatOptimizer()
    groups = plan(flat, optimizer, parameters)
    optimizer.param_groups[0][option] = 0.0
    with pytest.raises(ValueError, match="steps_per_call=1"):
        groups[0].scalars()
    assert plan(flat, optimizer, parameters) is not groups


def test_loaded_optimizer_state_is_laid_out_again() -> None:
    """`load_state_dict` makes new groups, which a schedule then changes; SGD has no moments."""
    optimizer, parameters = two_groups(partial(SGD, lr=1.0))
    flat = FlatOptimizer()
    plan(flat, optimizer, parameters)
    optimizer.load_state_dict(optimizer.state_dict())
    groups = plan(flat, optimizer, parameters)
    optimizer.param_groups[1]["lr"] = 0.25
    assert [group.scalars()[-1] for group in groups] == [1.0, 0.25]
