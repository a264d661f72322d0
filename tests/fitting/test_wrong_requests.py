"""Messages of wrong requests: the thing and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

from command_line import run_command
from ppl_lvm import fit, load_data, load_run
from ppl_lvm.models import PPCA, RandomEffects

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"num_steps": 2, "progress": False, "engine": "eager"}


class Sized(PyroModule):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=x)


def wrong_plate(x: Tensor) -> None:
    with pyro.plate("data", 15):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None].expand(15, 4), 1.0).to_event(1), obs=x)


def indefinite_covariance(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), -torch.eye(4)), obs=x)


REQUESTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a class without its argument": (
        lambda: fit(Sized, None, X, **OPTIONS),
        "Sized needs a .*size",
    ),
    "a guide class without its argument": (
        lambda: fit(PPCA(1), Sized, X, **OPTIONS),
        "Sized needs a value of size. Pass it in the settings",
    ),
    "too many arrays": (
        lambda: fit(RandomEffects(), None, (X, X, X), **OPTIONS),
        r"RandomEffects.initialize\(x\) cannot be called with the tensors of the data \(3\)",
    ),
    "an objective with its module": (
        lambda: fit(PPCA(1), None, X, objective="pyro.infer.Trace_ELBO", **OPTIONS),
        "Write Trace_ELBO, without its module",
    ),
    "lists of unequal length": (lambda: load_data([[1.0, 2.0], [3.0]]), "Pad them with NaN"),
    "a directory without a run": (lambda: load_run("tests"), "Pass the directory= of a fit"),
    "an indefinite covariance": (
        lambda: fit(indefinite_covariance, None, X, **OPTIONS),
        "covariance.* must be positive.definite",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_wrong_request_is_answered_with_the_remedy(name: str) -> None:
    call, words = REQUESTS[name]
    with pytest.raises((ValueError, OSError), match=words):
        call()


def test_plate_of_another_size_is_no_fault_of_the_automatic_guide() -> None:
    with pytest.raises(ValueError, match="plate-size: The plate 'data'") as caught:
        fit(wrong_plate, None, X, **OPTIONS)
    assert "error plates:" not in str(caught.value)


@pytest.mark.slow
def test_codes_of_another_site_are_answered_with_the_latents() -> None:
    run = fit(PPCA(1), None, X, **OPTIONS)
    with pytest.raises(ValueError, match=r"Codes: .* no site 'w'. Its latents are z\."):
        run.decode({"w": torch.zeros(3, 1)})


def test_check_at_the_command_line_shows_why_a_model_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n\n\n"
        "def model(x):\n"
        '    with pyro.plate("data", len(x)):\n'
        '        pyro.sample("x", dist.Normal(x @ torch.ones(7), 1.0), obs=x[:, 0])\n'
    )
    done = run_command("check", "mine.py:model", "--data", "iris", folder=tmp_path)
    assert done.returncode == 2
    assert "model-fails" in done.stderr
    assert "remedy: Print the shapes" in done.stderr
