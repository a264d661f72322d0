"""Programs that do not run: call, line, and remedy."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]
SETTINGS: dict[str, float] = {}


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _two_model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(w * x.sum(-1), 1.0), obs=y)


def _w_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _crashes(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2) @ torch.zeros(3), 1.0).to_event(1))


def _unset(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), SETTINGS["scale"]).to_event(1))


GUIDES: dict[Program, Fault] = {
    _crashes: (
        "guide-fails",
        "z",
        {"torch.zeros(2) @ torch.zeros(3)": "torch.zeros(3, 2).sum(0)"},
        "Print the shapes on the line named",
    ),
    _unset: ("guide-fails", "z", {'SETTINGS["scale"]': "1.0"}, "fix the reported line"),
}


def _shapes(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        loc = x - x.mean(-1)
        pyro.sample("x", dist.Normal(loc.sum(-1) + w, 1.0), obs=x[:, 0])


def _types(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    weights = torch.ones(3, dtype=torch.double)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(x @ weights + w, 1.0), obs=x[:, 0])


def _twice(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        for i in range(2):
            pyro.sample("x_i", dist.Normal(w, 1.0), obs=x[:, i])


def _columns_in_the_plate(x: Tensor) -> None:
    """Three columns in a plate of eight rows."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, torch.ones(3)), obs=x)


def _plate_of_other_rows(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, dim=-1):
        pyro.sample("x", dist.Normal(w + 0 * x[:, 0], 1.0), obs=x[:, 0])


def _index(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    table = w * torch.ones(2)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(table[0 * x[:, 0]], 1.0), obs=x[:, 0])


MODELS: dict[Program, Fault] = {
    _index: (
        "model-fails",
        "x",
        {"0 * x[:, 0]], 1": "(0 * x[:, 0]).long()], 1"},
        ".long()",
    ),
    _shapes: (
        "model-fails",
        "data",
        {"x.mean(-1)": "x.mean(dim=-1).unsqueeze(-1)"},
        "unsqueeze(-1)",
    ),
    _types: ("model-fails", "x", {"x @ weights": "x @ weights.float()"}, ".float()"),
    _columns_in_the_plate: (
        "undeclared-batch",
        "x",
        {"torch.ones(3))": "torch.ones(3)).to_event(1)"},
        ".to_event(1)",
    ),
    _plate_of_other_rows: (
        "undeclared-batch",
        "x",
        {"10, dim=-1": "len(x), dim=-1"},
        "pyro.plate('data', len(x), dim=-1)",
    ),
    _twice: ("duplicate-site", "x_i", {'"x_i"': 'f"x_i_{i}"'}, 'f"x_i_{i}"'),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_check_reports_execution_fault_of_a_guide_with_its_remedy(
    guide: Program, verify_fault: Any
) -> None:
    verify_fault(_model, guide, guide, *GUIDES[guide])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_execution_fault_of_a_model_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _w_guide, model, *MODELS[model])


def test_check_reports_a_guide_that_does_not_accept_the_batch(x: Tensor, verify_fault: Any) -> None:
    changes = {"def _w_guide(x: Tensor)": "def _w_guide(x, y)"}
    batch = (x, x[:, 0])
    verify_fault(
        _two_model,
        _w_guide,
        _w_guide,
        "call-signature",
        None,
        changes,
        "def _w_guide(x, y)",
        *batch,
    )


def test_check_reports_a_model_that_does_not_accept_the_batch(x: Tensor, verify_fault: Any) -> None:
    changes = {"x: Tensor, y: Tensor": "x", "    w = ": "    y = x[:, 0]\n    w = "}
    verify_fault(
        _two_model, _w_guide, _two_model, "call-signature", None, changes, "def _two_model(x)", x
    )
