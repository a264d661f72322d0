"""Faults of parameters: no gradient, or two of one name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.checks import check

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))


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


def _hidden_nan(x: Tensor) -> None:
    """A mask hides the missing values, but not their gradient."""
    x = x[:, 0].where(x[:, 0] > 0, torch.nan)
    loc = pyro.param("m", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(loc + z.sum(-1), 1.0), obs=x)


def _zero_hidden_too_late(x: Tensor) -> None:
    """The filled zeros are at the edge of the support: their logarithm is infinite there."""
    x = x[:, 0].where(x[:, 0] > 0, torch.nan)
    loc = pyro.param("m", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        lifetime = dist.LogNormal(loc + z.sum(-1), 1.0).mask(~x.isnan())
        pyro.sample("x", lifetime, obs=x.nan_to_num(0.0))


def _root_of_zero(x: Tensor) -> None:
    v = pyro.param("m", torch.zeros(2)).square().sum()
    spread = v.sqrt()
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0 + spread), obs=x[:, 0])


MODELS: dict[Program, Fault] = {
    _hidden_nan: (
        "gradient-not-finite",
        "x",
        {
            "        with poutine.mask(mask=~x.isnan()):\n    ": "",
            "1.0), obs=x)": "1.0).mask(~x.isnan()), obs=x.nan_to_num(1.0))",
        },
        "x.nan_to_num(1.0)",
    ),
    _zero_hidden_too_late: (
        "gradient-not-finite",
        "x",
        {"x.nan_to_num(0.0)": "x.nan_to_num(1.0)"},
        "x.nan_to_num(1.0)",
    ),
    _root_of_zero: (
        "gradient-not-finite",
        "x",
        {"v.sqrt()": "(v + 1e-12).sqrt()"},
        "(v + 1e-12).sqrt()",
    ),
}

_REMEDY = "without detach(), .data or torch.no_grad()"

GUIDES: dict[Program, Fault] = {
    _detached: ("no-gradient", "loc", {".detach()": ""}, _REMEDY),
    _data_attribute: ("no-gradient", "loc", {".data": ""}, _REMEDY),
    _no_gradient_block: ("no-gradient", "loc", {"torch.no_grad()": "torch.enable_grad()"}, _REMEDY),
    _numpy_detour: (
        "no-gradient",
        "loc",
        {"torch.from_numpy(np.tanh(net.detach().numpy()))": "net.tanh()"},
        _REMEDY,
    ),
    _idle: ("no-gradient", "idle", {"torch.zeros(2), 1.0": "pyro.param('idle'), 1.0"}, _REMEDY),
    _rounded: ("no-gradient", "loc", {"> 0).float()": ").sigmoid()"}, _REMEDY),
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_a_gradient_that_is_not_finite_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _guide, model, *MODELS[model])


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_check_reports_a_parameter_without_gradient_with_its_remedy(
    guide: Program, verify_fault: Any
) -> None:
    verify_fault(_model, guide, guide, *GUIDES[guide])


class _Half(PyroModule):
    """A module whose parameter is called `loc`, as in another module."""

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


def test_check_reports_two_parameters_of_one_name_until_one_is_renamed(x: Tensor) -> None:
    issues = check(_Half(True), _Half(False), x)
    assert [(f.code, f.site) for f in issues] == [("parameter-collision", "loc")]
    assert "Rename the guide's 'loc'" in issues[0].remedy
    assert "module_local_params=True" in issues[0].remedy
    assert len(check(_Half(True), _Half(False, "q_loc"), x)) == 0
    with pyro.settings.context(module_local_params=True):
        assert len(check(_Half(True), _Half(False), x)) == 0


def test_check_reports_parameters_of_an_earlier_program_until_cleared(x: Tensor) -> None:
    first, guide = _Half(True), _Half(False, "q_loc")
    SVI(first, guide, Adam({}), Trace_ELBO()).step(x)
    assert len(check(first, guide, x)) == 0  # the store holds their own
    again = _Half(True)
    issues = check(again, guide, x)
    assert [(f.code, f.severity, f.site) for f in issues] == [("stale-parameter", "warning", "loc")]
    assert issues[0].file == __file__
    assert "pyro.clear_param_store()" in issues[0].remedy
    assert torch.equal(pyro.param("loc"), first.get_parameter("loc_unconstrained"))  # left there
    pyro.clear_param_store()
    assert len(check(again, guide, x)) == 0


def test_check_reports_an_unused_layer_until_it_is_frozen(x: Tensor) -> None:
    class Idle(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.used(x), 1.0).to_event(1))

    guide = Idle()
    unused = [f for f in check(_model, guide, x) if f.code == "no-gradient"]
    assert [f.site for f in unused] == ["idle.weight", "idle.bias"]
    assert "requires_grad_(False)" in unused[0].remedy
    guide.idle.requires_grad_(False)
    assert len(check(_model, guide, x)) == 0
