"""A guide that breaks on simulated rows: its site, what it did and the remedy, in the table."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Gamma, Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.diagnosis import diagnose
from ppl_lvm.diagnostics.invalid_parameters import impossible, on_simulated
from ppl_lvm.programs.pair import ModelGuidePair


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)


class Guide:
    """N(0, s²) with s = exp(-rate · largest |x| of the row): 0, rounded, for large rows."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, x: Tensor) -> None:
        scale = (-self.rate * x.abs().amax(-1, keepdim=True)).exp().expand(-1, 2)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(torch.zeros(2), scale).to_event(1))


def table(rate: float) -> tuple[Any, str]:
    x = 0.001 * torch.randn(40, 2)
    pair = ModelGuidePair(model, Guide(rate), Trace_ELBO())
    pair.materialize_parameters(x)
    found = diagnose(pair, {"bound": [0.0] * 100}, x, temperatures=4)
    return found, str(found)


def test_the_site_the_fault_and_the_remedy_stand_in_the_table() -> None:
    found, said = table(500.0)
    assert "ValueError" not in said
    assert "Expected parameter" not in said
    rows = {f.name: f for f in found.findings}
    for name in ("sandwich on simulated data", "simulation-based calibration"):
        assert rows[name].verdict == "unknown"
        assert "the guide's site 'z' has an impossible scale of 0 (" in rows[name].why
        assert "the data's 0.00" in rows[name].why
        assert rows[name].remedy.startswith("Standardise the columns")
    answered = {f.question for f in found.findings if f.value is not None}
    assert {"How tight is the bound?", "Is the latent space used?"} <= answered


def test_a_guide_that_does_not_break_is_not_accused() -> None:
    _, said = table(0.1)
    assert "impossible" not in said
    assert impossible(model, Guide(0.1), (torch.randn(40, 2),)) is None


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x: Normal(x.log(), 1.0).to_event(1), "'x' has an impossible loc of nan"),
        (lambda x: Gamma(x, 1.0).to_event(1), "'x' has an impossible concentration of -"),
    ],
)
def test_the_models_own_faults_are_told_from_the_guides(fn: Any, said: str) -> None:
    def broken(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", fn(-z.abs()), obs=x)

    with pyro.validation_enabled(False):
        found = impossible(broken, Guide(0.1), (torch.randn(9, 2),))
    assert found is not None
    assert found.startswith(f"the model's site {said}")


def test_other_errors_pass_unchanged() -> None:
    x = (torch.randn(4, 2),)
    for error in (ValueError("mine"), CannotSayError("known"), RuntimeError("theirs")):
        with pytest.raises(type(error), match=str(error)), on_simulated(model, Guide(0.1), x, x):
            raise error
