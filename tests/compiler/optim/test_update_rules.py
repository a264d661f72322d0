"""Update rules with float32 scalars against the optimizers."""

from typing import Any

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from ppl_lvm.compiler.optim.update_rules import RULES, rule_of, supported_optimizers

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "clipped adam": lambda p: ClippedAdam(p, lr=0.01, clip_norm=2.0),
    "centered": lambda p: ClippedAdam(p, lr=0.01, centered_variance=True),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "sgd": lambda p: SGD(p, lr=0.01),
}


def optimizer(name: str, *parameters: torch.nn.Parameter) -> Optimizer:
    result: Optimizer = OPTIMIZERS[name](list(parameters))
    return result


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rule_with_float32_scalars_gives_the_optimizers_moments(name: str) -> None:
    """After 100 steps every moment is right to rounding: no scalar may be a difference near 1."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(50))
    p = parameter.detach().clone()
    torch_optimizer = optimizer(name, parameter)
    options = dict(torch_optimizer.param_groups[0])  # ClippedAdam changes the rate that it stores
    rule = rule_of(torch_optimizer, torch_optimizer.param_groups[0])
    assert rule is not None
    moments = [torch.zeros(50) for _ in rule.moments]
    for t in range(1, 101):
        parameter.grad = torch.randn(50)
        h = torch.tensor(rule.step_scalars(options, t)).unbind()
        rule.update(p, parameter.grad.clone(), moments, h, options)
        torch_optimizer.step()
    for moment_name, moment in zip(rule.moments, moments, strict=True):
        expected = torch_optimizer.state[parameter][moment_name]
        assert torch.allclose(moment, expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))
    assert torch.allclose(p, parameter, rtol=0, atol=2e-6)


def test_every_rule_is_tested_against_its_optimizer() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizers = [optimizer(name, parameter) for name in OPTIMIZERS]
    tested = {id(rule_of(o, o.param_groups[0])) for o in optimizers}
    assert tested == {id(rule) for rule in RULES}
    assert {type(o) for o in optimizers} == {cls for rule in RULES for cls in rule.optimizers}


def test_supported_optimizers_names_each_class_of_the_rules_once() -> None:
    assert supported_optimizers() == "Adam, AdamW, ClippedAdam, SGD"


@pytest.mark.parametrize(
    "unsupported", [lambda p: RMSprop(p), lambda p: Adam(p, amsgrad=True)], ids=["class", "option"]
)
def test_rule_of_returns_none_for_an_unsupported_class_or_option(unsupported: Any) -> None:
    torch_optimizer = unsupported([torch.nn.Parameter(torch.zeros(1))])
    assert rule_of(torch_optimizer, torch_optimizer.param_groups[0]) is None
