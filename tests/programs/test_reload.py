"""Runs whose programs cannot be built again."""

import re
import warnings
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import fit, load_run

pytestmark = pytest.mark.usefixtures("no_figures")

X = torch.zeros(6, 2)


class Factors(PyroModule):
    """z_n ~ N(0, 1);  x_n ~ N(w z_n, 1)."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width
        self.w = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z.unsqueeze(-1) * self.w, 1.0).to_event(1), obs=x)


class Forgets(Factors):
    def __init__(self, columns: int) -> None:
        super().__init__(columns)


class Changes(Factors):
    def __init__(self, half: int = 1) -> None:
        super().__init__(2 * half)
        self.half = 2 * half


class WithoutConstructor(PyroModule):
    def forward(self, x: Tensor) -> None:
        b = pyro.param("b", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z.unsqueeze(-1) + b, 1.0).to_event(1), obs=x)


class PlainModule(nn.Module):
    forward = WithoutConstructor.forward


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(loc, 1.0))


def local_class() -> Any:
    class Local(Factors):
        pass

    return Local()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Forgets(2), r"constructor arguments \('columns'\) are not kept"),
        (Changes(), "built again from its attributes it has another 'w'"),
        (local_class(), "no address leads"),
        (lambda x: Factors()(x), "no address leads"),
    ],
    ids=["forgets", "changes", "local", "lambda"],
)
def test_model_that_cannot_be_built_again_is_named_when_the_fit_starts(
    model: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=f"{reason}.*load_run\\(directory, model=...\\)"):
        fit(model, guide, X, num_steps=1, directory=tmp_path, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no word about a file that has changed
        with pytest.raises(ValueError, match=r"Pass (it|the programs)|do not fit"):
            load_run(tmp_path)
    assert load_run(tmp_path, model=model).results["steps"] == 1


def test_guide_that_cannot_be_found_again_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=re.escape("load_run(directory, guide=...)")):
        fit(Factors(), lambda x: guide(x), X, num_steps=1, directory=tmp_path, progress=False)


@pytest.mark.parametrize(
    "model",
    [Factors(2), Factors, WithoutConstructor(), WithoutConstructor, PlainModule()],
    ids=["instance", "class", "no-constructor", "its-class", "nn-module"],
)
def test_programs_that_can_be_built_again_are_silent(model: Any, tmp_path: Path) -> None:
    fit(model, guide, X, num_steps=1, directory=tmp_path, progress=False)
    assert load_run(tmp_path).results["steps"] == 1
