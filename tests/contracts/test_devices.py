"""A whole fit where its data lie, from reading them to the last picture, without a GPU."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from elsewhere import THERE, another_device
from ppl_lvm.fitting.svi import fit

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
BITS = (X > 0).float()
NET: dict[str, Any] = {"settings": {"latent": 2, "hidden": (4,)}}
PART: dict[str, Any] = {"validation": 0.2, "batch_size": 16, "clip_norm": 1.0}
SLOW: dict[str, Any] = {"kl_annealing": 2, "schedule": "StepLR(step_size=1)"}
CASES: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "VAE": (BITS, {**NET, **PART, **SLOW}),
    "BernoulliVAE": (BITS, {**NET, "objective": "REBAR()"}),
    "GaussianMixture": (X[:, :2], {**PART, "restarts": 2}),
    "GaussianMixtureVAE": (BITS, NET),
    "HiddenMarkovModel": (X.view(8, 5, 4), {}),
}


def bound(name: str, x: Tensor, directory: Path, options: dict[str, Any]) -> float:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    asked: dict[str, Any] = {"engine": "eager", "num_steps": 2, "progress": False, **options}
    run = fit(f"ppl_lvm.models:{name}", None, x, directory=directory, **asked)
    assert {t.device for t in run.parameters().values()} == {x.device}
    found: float = run.results["bound"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_fit_stays_where_its_data_are_and_finds_the_same(name: str, tmp_path: Path) -> None:
    x, options = CASES[name]
    expected = bound(name, x, tmp_path / "here", options)
    with another_device() as there:
        data = there(x)
        assert data.device == THERE
        assert bound(name, data, tmp_path / "there", options) == expected


def test_an_objective_that_is_left_behind_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_lvm.training.preparation.beside", lambda objective, batch: objective)
    x, options = CASES["BernoulliVAE"]
    with another_device() as there, pytest.raises(RuntimeError, match="device"):
        bound("BernoulliVAE", there(x), tmp_path / "there", options)
