"""Requests that `fit` rejects, with the remedy."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm import fit
from small_programs import Factor, FactorGuide, Mean, MeanGuide, factor_data

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 is too small. Pass a whole number of at least 1"),
        ({"num_steps": 1, "num_epochs": 1}, "not both"),
        ({"patience": 3}, "validation=0.1"),
        ({"optimizer": "Adan(lr=1)"}, "Unknown optimizer 'Adan'"),
        ({"optimizer": "Adam(rate=1)"}, "takes no 'rate'"),
        ({"objective": "ELBOW"}, "Unknown objective 'ELBOW'"),
        ({"restarts": 0}, "restarts"),
        ({"resume": True}, "needs the directory"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_fit_rejects_invalid_options_with_a_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Factor(), FactorGuide(), factor_data(), **arguments)


def test_fit_rejects_mini_batches_without_a_plate_over_rows() -> None:
    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        pyro.sample("x", Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r'pyro\.plate\("data", len\(x\)\)'):
        fit(model, lambda x: None, torch.randn(20), batch_size=5, num_steps=3)
    run = fit(model, lambda x: None, torch.randn(20), num_steps=3)
    assert run.results["steps"] == 3


def test_fit_rejects_objectives_with_silently_wrong_gradients() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("coin", Bernoulli(p))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("coin", Bernoulli(q))

    for name in ("RenyiELBO(num_particles=3)", "TraceMeanField_ELBO"):
        with pytest.raises(ValueError, match="'coin'"):
            fit(model, guide, torch.randn(10), objective=name, num_steps=1)
    with pytest.raises(ValueError, match=r"global latent 'm' and mini-batches"):
        fit(
            Mean(),
            MeanGuide(),
            torch.randn(20),
            objective="RenyiELBO(num_particles=3)",
            batch_size=5,
            num_steps=1,
        )


@pytest.mark.parametrize("objective", ["NeuralBaseline", "RELAX", "DisARM"])
def test_fit_rejects_score_function_objectives_for_a_reparameterized_guide(
    objective: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="'z'"):
        fit(
            Factor(),
            FactorGuide(),
            factor_data(20),
            objective=objective,
            num_steps=2,
            directory=tmp_path / "r",
        )
    assert not (tmp_path / "r").exists()
