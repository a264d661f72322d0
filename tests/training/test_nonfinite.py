"""A loss, a gradient or a value that is none: who is at fault, and what is kept."""

import functools
from pathlib import Path

import pyro
import pytest
import torch
from pyro.distributions import Normal, Poisson
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.fit import fit
from ppl_lvm.training.nonfinite import NonFiniteError

quiet = functools.partial(fit, progress=False)


class Counts(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.rate = PyroParam(torch.tensor([1.0, 2.0]), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Poisson(self.rate).to_event(1), obs=x)


def test_a_value_outside_the_support_names_its_row() -> None:
    x = torch.ones(40, 2)
    x[17, 1] = -1.0
    with pytest.raises(NonFiniteError, match=r"site 'x'.*support of Poisson.*17|18") as raised:
        quiet(Counts(), lambda x: None, x, batch_size=8, num_steps=20)
    assert "row" in str(raised.value)


class Exploding(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(torch.log(self.m), 1.0), obs=x)


def test_a_nan_keeps_the_last_good_parameters_and_names_the_site(tmp_path: Path) -> None:
    from ppl_lvm.checkpoint import load_checkpoint

    with pytest.raises(NonFiniteError, match=r"site 'x' of the model has a loc that is NaN") as e:
        quiet(
            Exploding(),
            lambda x: None,
            torch.full((5,), -5.0),
            optimizer="SGD(lr=0.3)",
            num_steps=50,
            directory=tmp_path,
        )
    assert "are kept" in str(e.value)
    tensors, data = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(t).all() for n, t in tensors.items() if n.startswith("state/"))
    assert data["step"] == len(tensors["history/bound"])


class Root(PyroModule):
    """The root of a number whose gradient is NaN once it has sunk below zero."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.fine = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            root = (self.a * (self.a > 0)).sqrt()
            pyro.sample("x", Normal(self.fine + root, 1.0), obs=x)


def test_a_nan_gradient_under_a_finite_loss_names_the_parameter() -> None:
    with pytest.raises(NonFiniteError, match=r"Step 2: the gradient of parameter 'a' is NaN"):
        quiet(Root(0.005), lambda x: None, -torch.ones(5), num_steps=3)


def test_a_gradient_that_is_nan_from_the_start_is_refused_before_any_step() -> None:
    with pytest.raises(ValueError, match=r"gradient-not-finite: log p of 'x' is finite, but its"):
        quiet(Root(0.0), lambda x: None, torch.ones(5), num_steps=3)
