"""Programs in the shape of published packages."""

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Gamma, GammaPoisson, LogNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm import check, fit, load_run


class _Droplets(PyroModule):
    """Counts of droplets with ambient RNA, a cell in some of them (after CellBender's formulas).

    φ ~ Γ(2, .1), y_n ~ Bernoulli(.4), z_n ~ N(0, I), d_n, e_n ~ LogNormal, ε_n ~ Γ(50, 50)
    x_n ~ NegativeBinomial of mean ε_n (y_n d_n softmax(f(z_n)) + e_n χ) and shape φ
    """

    def __init__(self, genes: int = 4) -> None:
        super().__init__()
        self.genes = genes
        self.decoder, self.encoder = nn.Linear(2, genes), nn.Linear(genes, 5)

    def forward(self, x: Tensor) -> None:
        uniform = torch.full((self.genes,), 1 / self.genes)
        ambient = pyro.param("ambient", uniform, constraint=constraints.simplex)
        phi = pyro.sample("phi", Gamma(2.0, 0.1))
        with pyro.plate("droplets", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).expand_by([len(x)]).to_event(1))
            cell = pyro.sample("cell_size", LogNormal(4.0, 0.5))
            empty = pyro.sample("empty_size", LogNormal(torch.tensor(2.0), 0.3).expand_by([len(x)]))
            efficiency = pyro.sample("efficiency", Gamma(50.0, 50.0).expand_by([len(x)]))
            y = pyro.sample("y", Bernoulli(0.4), infer={"enumerate": "parallel"})
            mean = (y * cell)[..., None] * self.decoder(z).softmax(-1) + empty[..., None] * ambient
            rate = phi[..., None] / (efficiency[..., None] * mean + 1e-6)
            pyro.sample("x", GammaPoisson(phi[..., None], rate).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        log_phi = pyro.param("log_phi", torch.tensor(2.5))
        pyro.sample("phi", LogNormal(log_phi, 0.1))
        with pyro.plate("droplets", len(x), dim=-1):
            h = self.encoder(x.log1p())
            pyro.sample("z", Normal(h[:, :2], 0.5).to_event(1))
            pyro.sample("cell_size", LogNormal(4 + h[:, 2], 0.2))
            pyro.sample("empty_size", LogNormal(pyro.param("empty", torch.tensor(2.0)), 0.2))
            pyro.sample("efficiency", Gamma(50 * (1 + 0.1 * h[:, 3].tanh()), 50.0))
            pyro.sample("y", Bernoulli(logits=h[:, 4]), infer={"enumerate": "parallel"})


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_droplets_of_a_guide_that_enumerates_beside_local_and_global_draws(tmp_path: Path) -> None:
    model = _Droplets()
    x = torch.poisson(torch.full((24, 4), 3.0), generator=torch.Generator().manual_seed(0))
    x[:12] *= 10
    assert check(model, model.guide, x[:8], num_rows=24).ok
    options: dict[str, Any] = {"batch_size": 8, "validation": 0.25, "engine": "eager"}
    options |= {"num_steps": 3, "progress": False, "directory": tmp_path / "run"}
    with pytest.warns(UserWarning, match="guide: .*it is a method of an object"):
        run = fit(model, model.guide, x, **options)
    assert not run.results["not_computed"]
    assert math.isfinite(run.results["held_out"])
    codes = run.encode(x)
    assert {n: c.shape for n, c in codes.items()} == {
        "z": (24, 2),
        "cell_size": (24,),
        "empty_size": (24,),
        "efficiency": (24,),
        "y": (24, 2),
    }
    assert math.isfinite(run.log_evidence(x, 10).value)
    assert run.to_arviz(x, num_samples=3).log_likelihood["x"].shape == (1, 3, 24)
    loaded = load_run(tmp_path / "run", model=model, guide=model.guide)
    assert torch.equal(loaded.encode(x)["z"], codes["z"])
