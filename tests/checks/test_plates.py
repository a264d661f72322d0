"""Faults of plates: missing, wrong, colliding, sequential, scaled twice."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.checks import check

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _w_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _nothing(x: Tensor) -> None:
    pass


def _no_plate(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


def _other_dim(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _other_size(x: Tensor) -> None:
    with pyro.plate("data", len(x) + 1, dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _second_plate(x: Tensor) -> None:
    with pyro.plate("pairs", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _hidden_batch(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(4, 1, 2), 1.0).to_event(1))


def _scaled_by_hand(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=1000 / len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


_DATA = "with pyro.plate('data', len(x), dim=-1): pyro.sample('z', "

GUIDES: dict[Program, Fault] = {
    _no_plate: (
        "plates",
        "z",
        {"pyro.sample(": "with pyro.plate('data', len(x), dim=-1): pyro.sample("},
        _DATA,
    ),
    _other_dim: ("plates", "z", {"dim=-2": "dim=-1"}, _DATA),
    _other_size: ("plates", "z", {"len(x) + 1": "len(x)"}, _DATA),
    _second_plate: ("plates", "z", {'pyro.plate("pairs", 2, dim=-2), ': ""}, _DATA),
    _hidden_batch: ("shape", "z", {"zeros(4, 1, 2)": "zeros((2,))"}, "(2,)"),
    _scaled_by_hand: (
        "double-scaling",
        "z",
        {", poutine.scale(scale=1000 / len(x))": ""},
        "Remove the pyro.poutine.scale around it.",
    ),
}


def _unplated(x: Tensor) -> None:
    """A batch dimension without a plate."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(w, 1.0).expand([8]), obs=x[:, 0])


def _columns_as_batch(x: Tensor) -> None:
    """Columns are left as a batch dimension to the left of the rows."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0).expand([3, len(x)]), obs=x.T)


def _columns_without_plate(x: Tensor) -> None:
    """The same, by the shape of a parameter."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w * torch.ones(3, 1), 1.0), obs=x.T)


def _wrong_size(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3, dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[0])


def _one_by_one(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=x[i, 0])


def _collide(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), pyro.plate("columns", 3, dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x.T)


def _scaled(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=100 / len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _averaged(x: Tensor) -> None:
    """A mean over the rows in place of their sum."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=1 / len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _scaled_beside_pyros(x: Tensor) -> None:
    """Scaled by hand, and again by `subsample_size`."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with (
        pyro.plate("data", len(x), subsample_size=4, dim=-1) as index,
        poutine.scale(scale=len(x) / 4),
    ):
        pyro.sample("x", dist.Normal(w, 1.0).expand([4]), obs=x[index, 0])


def _half_outside(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w * torch.ones(len(x)), 1.0).to_event(1), obs=x[:, 1])
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _rows_as_event(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])
    pyro.sample("y", dist.Normal(w, 1.0).expand([len(x)]).to_event(1), obs=x[:, 1])


def _all_outside(x: Tensor) -> None:
    """Without a plate, and with the rows as an event."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(w * torch.ones(len(x)), 1.0).to_event(1), obs=x[:, 0])


def _plate_twice(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = w * torch.ones(len(x))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(z, 1.0), obs=x[:, 1])


_ROWS = "with pyro.plate('data', len(x), dim=-1):"

MODELS: dict[Program, Fault] = {
    _unplated: (
        "undeclared-batch",
        "x",
        {'    pyro.sample("x"': f'    {_ROWS} pyro.sample("x"'},
        _ROWS,
    ),
    _columns_as_batch: (
        "undeclared-batch",
        "x",
        {".expand([3, len(x)])": ".expand([len(x), 3]).to_event(1)", "obs=x.T": "obs=x"},
        ".to_event(",
    ),
    _columns_without_plate: (
        "undeclared-batch",
        "x",
        {'    pyro.sample("x"': "    with pyro.plate('rows', 3, dim=-2): pyro.sample(\"x\""},
        "with pyro.plate('rows', 3, dim=-2):",
    ),
    _wrong_size: ("plate-size", "x", {"3, dim": "len(x), dim", "x[0]": "x[:, 0]"}, _ROWS),
    _one_by_one: (
        "sequential-plate",
        "x_0",
        {
            'for i in pyro.plate("data", len(x)):': "with pyro.plate('data', 8, dim=-1):",
            'f"x_{i}"': '"x"',
            "x[i, 0]": "x[:, 0]",
        },
        "with pyro.plate('data', 8, dim=-1):",
    ),
    _collide: ("plates-collide", "data", {"3, dim=-1": "3, dim=-2"}, "dim=-2"),
    _scaled: (
        "double-scaling",
        "x",
        {", poutine.scale(scale=100 / len(x))": ""},
        "Remove the pyro.poutine.scale",
    ),
    _averaged: (
        "double-scaling",
        "x",
        {", poutine.scale(scale=1 / len(x))": ""},
        "Remove the pyro.poutine.scale",
    ),
    _scaled_beside_pyros: (
        "double-scaling",
        "x",
        {"poutine.scale(scale=len(x) / 4),": ""},
        "Remove the pyro.poutine.scale",
    ),
    _half_outside: (
        "outside-data-plate",
        "y",
        {
            '    pyro.sample("y", dist.Normal(w * torch.ones(len(x)), 1.0).to_event(1), '
            "obs=x[:, 1])\n": "",
            "dim=-1):\n": 'dim=-1):\n        pyro.sample("y", dist.Normal(w, 1.0), obs=x[:, 1])\n',
        },
        "pyro.plate('data', len(x), dim=-1)",
    ),
    _rows_as_event: (
        "outside-data-plate",
        "y",
        {
            '    pyro.sample("y", dist.Normal(w, 1.0).expand([len(x)]).to_event(1)': "        "
            'pyro.sample("y", dist.Normal(w, 1.0)'
        },
        "pyro.plate('data', len(x), dim=-1)",
    ),
    _all_outside: (
        "outside-data-plate",
        "x",
        {
            '    pyro.sample("x", ': f'    {_ROWS} pyro.sample("x", ',
            "* torch.ones(len(x)), 1.0).to_event(1)": ", 1.0)",
        },
        "with pyro.plate('data', len(x), dim=-1): pyro.sample('x', ",
    ),
    _plate_twice: (
        "duplicate-site",
        "data",
        {
            '    with pyro.plate("data", len(x), dim=-1):\n        z': "    data = "
            "pyro.plate('data', len(x), dim=-1)\n    with data:\n        z",
            'with pyro.plate("data", len(x), dim=-1)': "with data",
        },
        "data = pyro.plate('data', len(x), dim=-1)",
    ),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_check_reports_plate_fault_of_a_guide_with_its_remedy(
    guide: Program, verify_fault: Any
) -> None:
    verify_fault(_model, guide, guide, *GUIDES[guide])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_plate_fault_of_a_model_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _w_guide, model, *MODELS[model])


def test_check_names_a_size_that_the_values_of_the_rows_give() -> None:
    """Codes 308 to 327 are 328 groups, of which the rows of a batch need another number."""

    def model(y: Tensor, group: Tensor) -> None:
        with pyro.plate("groups", int(group.max()) + 1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a[..., group], 1.0), obs=y)

    issues = check(model, None, torch.zeros(20), torch.arange(308, 328))
    (issue,) = (each for each in issues if each.code == "size-of-the-rows")
    assert (issue.site, issue.severity) == ("a", "warning")
    assert "the shape (328,), and without the last row (327,)" in issue.message
    assert "unique(return_inverse=True)" in issue.remedy
