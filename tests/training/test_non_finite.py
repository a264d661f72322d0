"""A loss, a gradient or a value that is none: who is at fault, and what is kept."""

import functools
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.core.storage import load_checkpoint
from ppl_lvm.fitting.svi import fit
from small_programs import Counts, Exploding, nothing

quiet = functools.partial(fit, progress=False)
REPLAYED: list[Any] = ["captured", pytest.param("compiled", marks=pytest.mark.slow)]


def test_a_value_outside_the_support_names_its_row() -> None:
    x = torch.ones(40, 2)
    x[17, 1] = -1.0
    with pytest.raises(NonFiniteError, match=r"site 'x'.*support of Poisson.*row 18 \(index 17\)"):
        quiet(Counts(), nothing, x, batch_size=8, num_steps=20)


def test_a_nan_keeps_the_last_good_parameters_and_names_the_site(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"site 'x' of the model has a loc that is NaN") as e:
        quiet(
            Exploding(),
            nothing,
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
        quiet(Root(0.005), nothing, -torch.ones(5), num_steps=3)


def test_a_gradient_that_is_nan_from_the_start_is_refused_before_any_step() -> None:
    with pytest.raises(ValueError, match=r"gradient-not-finite: log p of 'x' is finite, but its"):
        quiet(Root(0.0), nothing, torch.ones(5), num_steps=3)


def fails(program: Any, x: Tensor, path: Path, **asked: Any) -> tuple[str, dict[str, Any], int]:
    with pytest.raises(NonFiniteError) as raised:
        quiet(program, nothing, x, directory=path, **asked)
    tensors, kept = load_checkpoint(path / "checkpoint.safetensors")
    return str(raised.value), tensors, kept["step"]


@pytest.mark.parametrize("level", REPLAYED)
@pytest.mark.parametrize("per_call", [1, 5])
def test_a_nan_is_named_and_the_last_good_state_kept(
    level: Any, per_call: int, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"optimizer": "SGD(lr=0.1)", "num_steps": 50}
    asked["schedule"] = "ExponentialLR(gamma=0.99)"
    x = torch.full((5,), -5.0)
    message, tensors, step = fails(Exploding(), x, tmp_path / "a", engine="eager", **asked)
    assert "site 'x' of the model has a loc that is NaN" in message
    assert step % 5  # within a call
    asked |= {"engine": level, "steps_per_call": per_call}
    same, found, reached = fails(Exploding(), x, tmp_path / "b", **asked)
    assert (same.replace("/b/", "/a/"), reached) == (message, step)
    for name in ("state/model/m", "history/bound"):
        assert torch.allclose(found[name], tensors[name], rtol=1e-5), name


@pytest.mark.parametrize("level", REPLAYED)
def test_a_nan_gradient_names_the_parameter(level: Any, tmp_path: Path) -> None:
    message, tensors, step = fails(
        Root(0.005), -torch.ones(5), tmp_path, num_steps=3, engine=level, clip_norm=1.0
    )
    assert "gradient of parameter 'a' is NaN" in message
    assert step == 1
    assert float(tensors["state/model/fine"]) == pytest.approx(-0.01, rel=1e-3)


def test_a_value_that_has_no_probability_is_found_where_the_program_does_not_run(
    tmp_path: Path,
) -> None:
    """A Poisson gives 0.5 a finite number: only the support tells."""
    x = torch.ones(40, 2)
    x[17, 1] = 0.5
    message, _, step = fails(
        Counts(), x, tmp_path, batch_size=8, num_steps=20, engine="captured", seed=1
    )
    assert "outside the support of Poisson" in message
    assert "row 18 (index 17)" in message
    assert step > 0


def test_an_exponential_that_overflows_is_called_by_its_objective() -> None:
    with pytest.raises(
        NonFiniteError,
        match=r"^Step \d+: the gradient of parameter .* every log-probability is finite\. "
        r"CUBO's exponential of log-weights .* a guide that ELBO has fitted",
    ):
        fit(
            "ppl_lvm.models:LatentDirichletAllocation",
            "ppl_lvm.guides:LocalNormal",
            "bars(n=60)",
            objective="CUBO",
            num_steps=20,
            progress=False,
        )
