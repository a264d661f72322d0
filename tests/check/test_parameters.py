"""Faults of parameters: never trained, or two under one name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.check import check

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _detached(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)).detach()
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _data_attribute(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)).data
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _no_gradient_block(x: Tensor) -> None:
    with torch.no_grad():
        loc = pyro.param("loc", torch.zeros(2)) * 2
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _numpy_detour(x: Tensor) -> None:
    net = pyro.param("loc", torch.zeros(2))
    loc = torch.from_numpy(np.tanh(net.detach().numpy()))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _idle(x: Tensor) -> None:
    pyro.param("idle", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _rounded(x: Tensor) -> None:
    loc = (pyro.param("loc", torch.zeros(2)) > 0).float()
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


_SAID = "without detach(), .data or torch.no_grad() between"

GUIDES: dict[Program, Fault] = {
    _detached: ("no-gradient", "loc", {".detach()": ""}, _SAID),
    _data_attribute: ("no-gradient", "loc", {".data": ""}, _SAID),
    _no_gradient_block: ("no-gradient", "loc", {"torch.no_grad()": "torch.enable_grad()"}, _SAID),
    _numpy_detour: (
        "no-gradient",
        "loc",
        {"torch.from_numpy(np.tanh(net.detach().numpy()))": "net.tanh()"},
        _SAID,
    ),
    _idle: ("no-gradient", "idle", {"torch.zeros(2), 1.0": "pyro.param('idle'), 1.0"}, _SAID),
    _rounded: ("no-gradient", "loc", {"> 0).float()": ").sigmoid()"}, _SAID),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_a_parameter_that_no_gradient_reaches(guide: Program, judge: Any) -> None:
    judge(_model, guide, guide, *GUIDES[guide])


class _Half(PyroModule):
    """A module whose parameter is called `loc`, like another's."""

    def __init__(self, observes: bool, name: str = "loc") -> None:
        super().__init__()
        self.name = name
        setattr(self, name, PyroParam(torch.zeros(2), constraints.real))
        self.observes = observes

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            loc = getattr(self, self.name)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            if self.observes:
                mean = z.sum(-1, keepdim=True)
                pyro.sample("x", dist.Normal(mean, torch.ones(3)).to_event(1), obs=x)


def test_two_parameters_of_one_name_are_found_and_a_new_name_mends_it(x: Tensor) -> None:
    findings = check(_Half(True), _Half(False), x)
    assert [(f.code, f.site) for f in findings] == [("parameter-collision", "loc")]
    assert "Rename the guide's 'loc'" in findings[0].remedy
    assert "module_local_params=True" in findings[0].remedy
    assert len(check(_Half(True), _Half(False, "q_loc"), x)) == 0
    with pyro.settings.context(module_local_params=True):
        assert len(check(_Half(True), _Half(False), x)) == 0


def test_a_layer_nobody_uses_is_named_and_may_be_frozen(x: Tensor) -> None:
    class Idle(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.used(x), 1.0).to_event(1))

    guide = Idle()
    found = [f for f in check(_model, guide, x) if f.code == "no-gradient"]
    assert [f.site for f in found] == ["idle.weight", "idle.bias"]
    assert "requires_grad_(False)" in found[0].remedy
    guide.idle.requires_grad_(False)
    assert len(check(_model, guide, x)) == 0
