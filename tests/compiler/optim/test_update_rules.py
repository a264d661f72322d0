"""The update of a compiled step, whose numbers are float32 tensors, against the optimiser's own."""

from typing import Any

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam

from ppl_lvm.compiler.optim.update_rules import rule_of

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "clipped adam": lambda p: ClippedAdam(p, lr=0.01, clip_norm=2.0),
    "centred": lambda p: ClippedAdam(p, lr=0.01, centered_variance=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_in_float32_give_the_optimizers_moments(name: str) -> None:
    """After 100 steps every moment is right to rounding: no number may be a difference near 1."""
    torch.manual_seed(0)
    own = torch.nn.Parameter(torch.randn(50))
    p = own.detach().clone()
    optimizer = OPTIMIZERS[name]([own])
    copied = dict(optimizer.param_groups[0])  # ClippedAdam changes the rate it stores
    rule = rule_of(optimizer, optimizer.param_groups[0])
    assert rule is not None
    moments = [torch.zeros(50) for _ in rule.moments]
    for t in range(1, 101):
        own.grad = torch.randn(50)
        h = torch.tensor(rule.step_scalars(copied, t)).unbind()
        rule.update(p, own.grad.clone(), moments, h, copied)
        optimizer.step()
    for at, moment in zip(rule.moments, moments, strict=True):
        kept = optimizer.state[own][at]
        assert torch.allclose(moment, kept, rtol=2e-6, atol=2e-6 * float(kept.abs().max()))
    assert torch.allclose(p, own, rtol=0, atol=2e-6)
