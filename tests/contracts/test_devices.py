"""Complete fits on a fake device."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from fake_device import DEVICE, fake_device
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
    options = {"engine": "eager", "num_steps": 2, "progress": False, **options}
    run = fit(f"ppl_lvm.models:{name}", None, x, directory=directory, **options)
    assert {t.device for t in run.parameters().values()} == {x.device}
    result: float = run.results["bound"]
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_fit_stays_on_the_device_of_its_data_with_equal_results(name: str, tmp_path: Path) -> None:
    x, options = CASES[name]
    expected = bound(name, x, tmp_path / "cpu", options)
    with fake_device() as to_device:
        data = to_device(x)
        assert data.device == DEVICE
        assert bound(name, data, tmp_path / "device", options) == expected


def test_objective_left_on_the_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ppl_lvm.training.preparation.move_to_batch_device", lambda objective, batch: objective
    )
    x, options = CASES["BernoulliVAE"]
    with fake_device() as to_device, pytest.raises(RuntimeError, match="device"):
        bound("BernoulliVAE", to_device(x), tmp_path / "device", options)
