"""Refitting a guide to other data."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.calibration import vsbc
from ppl_lvm.diagnostics.refit import refit_guide
from ppl_lvm.programs.pair import ModelGuidePair


class Mean(PyroModule):
    """mu ~ N(0, 1), x_n ~ N(mu, s²), s a parameter that must stay fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.s = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, self.s), obs=x)


class Guide(PyroModule):
    """q(mu) = N(loc, .3²)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        pyro.sample("mu", Normal(self.loc, 0.3))


def by_store(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mu", Normal(loc, 0.3))


@pytest.mark.parametrize("guide", [Guide(), by_store])
def test_refitted_guide_is_the_posterior_of_the_new_data_and_the_pair_is_unchanged(
    guide: Any,
) -> None:
    x, other = torch.randn(10), 2 + torch.randn(10)
    pair = ModelGuidePair(Mean(), guide, Trace_ELBO())
    pair.materialize_parameters(x)
    before = pair.state()
    with pair.scope(), torch.no_grad():
        refitted = refit_guide(pair, steps=100, learning_rate=0.1)(other)
        draws = torch.stack(
            [pyro.poutine.trace(refitted).get_trace(other).nodes["mu"]["value"] for _ in range(200)]
        )
    assert float(draws.mean()) == pytest.approx(float(other.sum()) / 11, abs=5 * 0.3 / 200**0.5)
    after = pair.state()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_vsbc_detects_a_guide_that_cannot_be_refitted() -> None:
    class Stuck(Guide):
        def forward(self, x: Tensor) -> None:
            pyro.sample("mu", Normal(3.0 + 0.01 * self.loc.tanh(), 0.3))

    x = torch.randn(10)
    verdicts = []
    for guide in (Guide(), Stuck()):
        pair = ModelGuidePair(Mean(), guide, Trace_ELBO())
        pair.materialize_parameters(x)
        symmetry = vsbc(
            pair.model, refit_guide(pair, steps=60, learning_rate=0.1), x, num_simulations=30
        )
        verdicts.append(symmetry.findings()[0].verdict)
    assert verdicts == ["good", "bad"]


def test_refit_guide_rejects_guides_without_parameters() -> None:
    pair = ModelGuidePair(Mean(), lambda x: pyro.sample("mu", Normal(0.0, 1.0)), Trace_ELBO())
    pair.materialize_parameters(torch.zeros(3))
    with pytest.raises(CannotSayError, match="no parameters to refit"):
        refit_guide(pair)(torch.zeros(3))
