"""Faults of determinism: randomness, state, branches, dependence on rows."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _w_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _numpy_noise(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)) + float(np.random.rand())
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _python_noise(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)) + random.gauss(0, 1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


_CALLS = iter(range(10**6))


def _counter(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)) + next(_CALLS)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _sometimes(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    if torch.rand(()) < 0.5:
        pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _by_position(x: Tensor) -> None:
    loc = pyro.param("loc", torch.arange(16.0).reshape(8, 2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc[: len(x)], 1.0).to_event(1))


def _by_plates_index(x: Tensor) -> None:
    loc = pyro.param("loc", torch.arange(16.0).reshape(8, 2))
    with pyro.plate("data", len(x), dim=-1) as index:
        pyro.sample("z", dist.Normal(loc[index], 1.0).to_event(1))


GUIDES: dict[Program, Fault] = {
    _numpy_noise: (
        "foreign-randomness",
        "z",
        {"float(np.random.rand())": "torch.rand(2)"},
        "torch.rand",
    ),
    _python_noise: (
        "foreign-randomness",
        "z",
        {
            "random.gauss(0, 1)": "pyro.sample('noise', dist.Normal(0.0, 1.0).mask(False), "
            "infer={'is_auxiliary': True})"
        },
        "pyro.sample(",
    ),
    _counter: ("non-deterministic", "z", {" + next(_CALLS)": ""}, "no counters"),
    _sometimes: (
        "structure-varies",
        "helper",
        {
            "    if torch.rand(()) < 0.5:\n        pyro": "    pyro",
            "(0.0, 1.0), infer": "(0.0, 1.0).mask(False), infer",
        },
        ".mask(",
    ),
    _by_position: ("batch-order", "z", {"loc[: len(x)]": "x[:, :2] + loc[0]"}, "from the row"),
    _by_plates_index: ("batch-order", "z", {"loc[index]": "x[:, :2] + loc[0]"}, "from the row"),
}


def _branches(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    if torch.rand(()) < 0.5:
        pyro.sample("extra", dist.Normal(w, 1.0), obs=torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _numpy_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(np.random.rand(), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _shuffled_by_python(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    order = random.sample(range(len(x)), len(x))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[order, 0])


MODELS: dict[Program, Fault] = {
    _branches: (
        "structure-varies",
        "extra",
        {
            "    if torch.rand(()) < 0.5:\n        pyro": "    pyro",
            "dist.Normal(w, 1.0), obs=torch": "dist.Normal(w, 1.0).mask(w > 0), obs=torch",
        },
        ".mask(",
    ),
    _numpy_model: ("foreign-randomness", "w", {"np.random.rand()": "torch.rand(())"}, "torch.rand"),
    _shuffled_by_python: (
        "foreign-randomness",
        "x",
        {"random.sample(range(len(x)), len(x))": "torch.rand(len(x)).argsort()"},
        "torch.rand",
    ),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_check_reports_determinism_fault_of_a_guide_with_its_remedy(
    guide: Program, verify_fault: Any
) -> None:
    verify_fault(_model, guide, guide, *GUIDES[guide])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_determinism_fault_of_a_model_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _w_guide, model, *MODELS[model])


def test_check_notes_item_and_torch_where_removes_the_note(x: Tensor) -> None:
    def branching(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        if loc.sum().item() > 1:
            loc = loc - 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def chosen(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        loc = torch.where(loc.sum() > 1, loc - 1, loc)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    notes = [issue for issue in check(_model, branching, x) if issue.code == "item"]
    assert len(notes) == 1
    assert notes[0].severity == "note"
    assert notes[0].file == __file__
    assert "torch.where" in notes[0].remedy
    assert len(check(_model, chosen, x)) == 0


def _local_parameters(x: Tensor) -> None:
    """Every row has separate parameters, with equal initial values."""
    loc = pyro.param("loc", lambda: torch.zeros(len(x), 2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("guide", [_local_parameters, autoguide.AutoNormal(_model)])
def test_guide_fixed_to_its_rows_is_a_note_and_an_error_in_mini_batches(
    guide: Program, x: Tensor
) -> None:
    all_rows = check(_model, guide, x)
    assert [(f.code, f.severity, f.site) for f in all_rows] == [("row-by-row", "note", "z")]
    mini_batch = check(_model, guide, x, num_rows=100)
    assert [(f.code, f.severity) for f in mini_batch] == [("row-by-row", "error")]
    assert "batch_size=None" in mini_batch[0].remedy
    assert "AmortizedNormal(model, x)" in mini_batch[0].remedy
    assert check(_model, AmortizedNormal(_model, x), x, num_rows=100).ok


def test_fit_refuses_a_guide_fixed_to_its_rows_in_mini_batches(x: Tensor) -> None:
    fit(_model, _local_parameters, x, num_steps=2)
    with pytest.raises(ValueError, match=r"row-by-row: The guide's 'z' belongs to the 4 rows"):
        fit(_model, _local_parameters, x, num_steps=2, batch_size=4)
