"""Invalid parameters on simulated rows: site, value and remedy."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Gamma, Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.diagnosis import diagnose
from ppl_lvm.diagnostics.invalid_parameters import invalid_site, locate_invalid_parameters
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
    diagnosis = diagnose(pair, {"bound": [0.0] * 100}, x, temperatures=4)
    return diagnosis, str(diagnosis)


@pytest.mark.slow
def test_diagnosis_names_the_invalid_site_its_value_and_a_remedy() -> None:
    diagnosis, text = table(500.0)
    assert "ValueError" not in text
    assert "Expected parameter" not in text
    rows = {f.name: f for f in diagnosis.findings}
    for name in ("sandwich on simulated data", "simulation-based calibration"):
        assert rows[name].verdict == "unknown"
        assert "the guide's site 'z' has an invalid scale of 0 (" in rows[name].why
        assert "the data's 0.00" in rows[name].why
        assert rows[name].remedy.startswith("Standardize the columns")
    answered = {f.question for f in diagnosis.findings if f.value is not None}
    assert {"How tight is the bound?", "Is the latent space used?"} <= answered


@pytest.mark.slow
def test_valid_guide_has_no_invalid_site() -> None:
    _, text = table(0.1)
    assert "invalid" not in text
    assert invalid_site(model, Guide(0.1), (torch.randn(40, 2),)) is None


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: Normal(x.log(), 1.0).to_event(1), "'x' has an invalid loc of nan"),
        (lambda x: Gamma(x, 1.0).to_event(1), "'x' has an invalid concentration of -"),
    ],
)
def test_invalid_site_distinguishes_the_model_from_the_guide(fn: Any, message: str) -> None:
    def broken(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", fn(-z.abs()), obs=x)

    with pyro.validation_enabled(False):
        text = invalid_site(broken, Guide(0.1), (torch.randn(9, 2),))
    assert text is not None
    assert text.startswith(f"the model's site {message}")


def test_other_errors_are_raised_unchanged() -> None:
    x = (torch.randn(4, 2),)
    for error in (ValueError("mine"), CannotSayError("known"), RuntimeError("theirs")):
        locate = locate_invalid_parameters(model, Guide(0.1), x, x)
        with pytest.raises(type(error), match=str(error)), locate:
            raise error
