"""On a CUDA device the levels take the same steps. Skipped, so unproved, where there is none."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.fit import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Factor(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", Normal(z * self.w, 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), 0.7).to_event(1))


@pytest.mark.parametrize("level", ["captured", "compiled"])
def test_the_levels_agree(level: Any) -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).cuda()
    runs = []
    for engine in ("eager", level):
        pyro.set_rng_seed(0)
        model, guide = Factor().cuda(), Guide().cuda()
        options: dict[str, Any] = {"engine": engine, "num_steps": 50, "batch_size": 16}
        runs.append(fit(model, guide, x, clip_norm=1.0, progress=False, **options))
    assert runs[1].results["engine"] == level
    assert runs[1].history["bound"] == pytest.approx(runs[0].history["bound"], rel=1e-4)
