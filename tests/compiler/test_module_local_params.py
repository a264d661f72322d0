"""CompiledSVI with parameters that are local to their modules."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm import CompiledSVI

X = torch.randn(20, generator=torch.Generator().manual_seed(0)) + 1


class Scaled(PyroModule):
    """m ~ N(0, 1), x_n ~ N(m, s)."""

    def __init__(self) -> None:
        super().__init__()
        self.s = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(m, self.s), obs=x)


def _losses(svi: Any, guide: Any, local: bool, **options: Any) -> list[float]:
    """Losses of five steps of a fresh pair."""
    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=local):
        pyro.set_rng_seed(0)
        model = Scaled()
        optimizer = pyro.optim.Adam({"lr": 0.05})  # type: ignore[attr-defined]
        steps = svi(model, guide(model), optimizer, Trace_ELBO(), **options)
        return [steps.step(X) for _ in range(5)]


@pytest.mark.parametrize("engine", ["eager", "captured"])
@pytest.mark.parametrize(
    "guide",
    [autoguide.AutoNormal, autoguide.AutoDelta, autoguide.AutoMultivariateNormal],
    ids=lambda guide: guide.__name__,
)
def test_compiled_svi_trains_fresh_autoguides_with_local_parameters(
    guide: Any, engine: str
) -> None:
    """As Pyro's SVI with its default settings; with local parameters it takes no such guide."""
    expected = _losses(SVI, guide, local=False)
    assert _losses(CompiledSVI, guide, local=True, engine=engine) == pytest.approx(expected)
