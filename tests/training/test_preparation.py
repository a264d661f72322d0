"""What a fit says of a doubtful pair, and what of a faulty one, before it begins."""

from pathlib import Path

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_lvm.fitting.svi import fit


def _doubtful(x: Tensor) -> None:
    pyro.param("idle", torch.zeros(2))
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(w, 1.0), obs=x)


def _stating(x: Tensor) -> None:
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.deterministic("x", w * x)


def test_a_warning_is_one_line_beside_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    fit(_doubtful, AutoNormal, torch.randn(5), num_steps=2)
    said = capsys.readouterr()
    assert said.out == ""
    first, *rest = said.err.splitlines()
    assert first.startswith("warning no-gradient: The parameter 'idle' never receives a gradient.")
    assert "Remedy: Use 'idle' in a site" in first
    assert not any("warning" in line for line in rest)
    fit(_doubtful, AutoNormal, torch.randn(5), num_steps=2, progress=False)
    assert capsys.readouterr().err == ""


def test_a_model_that_only_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing-observed.*'x' is a pyro\.deterministic") as said:
        fit(_stating, AutoNormal, torch.randn(5), num_steps=2, directory=tmp_path / "run")
    assert "pyro.sample('x', ..., obs=x)" in str(said.value)
    assert not (tmp_path / "run").exists()
