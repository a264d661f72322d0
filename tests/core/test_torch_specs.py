"""Optimizers and schedules in call syntax."""

from typing import Any

import pyro.optim
import pytest
import torch

from ppl_lvm.core import torch_specs


@pytest.mark.parametrize(
    "spec",
    [
        "ClippedAdam(lr=0.02, clip_norm=3.0)",
        pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 3.0}),
        pyro.optim.Adam({"lr": 0.02, "betas": (0.8, 0.9)}),
        pyro.optim.SGD({"lr": 0.02}),
        pyro.optim.AdagradRMSProp({"eta": 0.02}),
    ],
)
def test_optimizer_of_pyro_takes_the_steps_that_it_takes_there(spec: Any) -> None:
    theirs, ours = torch.tensor([3.0, -40.0]), torch.tensor([3.0, -40.0])
    pyros = (
        pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 3.0}) if isinstance(spec, str) else spec
    )
    for value in (theirs, ours):
        value.requires_grad_()
    optimizer = torch_specs.optimizer(spec, [ours])
    again = torch_specs.optimizer(torch_specs.describe(spec), [ours.clone().detach()])
    assert again.defaults == optimizer.defaults
    for _ in range(5):
        for value, step in ((theirs, lambda: pyros([theirs])), (ours, optimizer.step)):
            value.grad = None
            value.square().sum().backward()
            step()
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("adam", ValueError, "Did you mean Adam?"),
        (pyro.optim.Adam(lambda name: {"lr": 0.1}), ValueError, "function of the parameter"),
        (pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}), ValueError, "pass clip_norm="),
        (
            pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.1}
            ),
            ValueError,
            "Pass both: optimizer=",
        ),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), TypeError, "has its parameters already"),
        (0.01, TypeError, "0.01 is no optimizer. Pass a text"),
    ],
)
def test_optimizer_rejects_specifications_by_name(
    spec: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        torch_specs.optimizer(spec, [torch.zeros(1)])
