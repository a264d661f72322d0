"""Warnings and errors of a pair before training."""

from pathlib import Path

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_lvm.fitting.svi import fit

pytestmark = pytest.mark.usefixtures("no_figures")


def _idle_parameter(x: Tensor) -> None:
    pyro.param("idle", torch.zeros(2))
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(w, 1.0), obs=x)


def _no_observation(x: Tensor) -> None:
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.deterministic("x", w * x)


def test_fit_prints_a_warning_of_check_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    fit(_idle_parameter, AutoNormal, torch.randn(5), num_steps=2)
    output = capsys.readouterr()
    assert output.out == ""
    first, *rest = output.err.splitlines()
    assert first.startswith("warning no-gradient: The parameter 'idle' never receives a gradient.")
    assert "Remedy: Use 'idle' in a site" in first
    assert not any("warning" in line for line in rest)
    fit(_idle_parameter, AutoNormal, torch.randn(5), num_steps=2, progress=False)
    assert capsys.readouterr().err.splitlines()[0] == first


def test_fit_rejects_a_model_without_observations(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nothing-observed.*'x' is a pyro\.deterministic"
    ) as error:
        fit(_no_observation, AutoNormal, torch.randn(5), num_steps=2, directory=tmp_path / "run")
    assert "pyro.sample('x', ..., obs=x)" in str(error.value)
    assert not (tmp_path / "run").exists()
