"""Guides of sites whose names are no attribute names."""

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Dirichlet, Normal
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm import fit, load_run
from ppl_lvm.guides import AmortizedJoint, auto_guide
from ppl_lvm.guides.parts.site_guide import module_names

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -1.0, 0.5])


class BayesianLayer(PyroModule):
    """A linear layer whose weights are sites: "layer.weight" and "layer.bias"."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](3, 1)
        self.layer.weight = PyroSample(Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.layer.bias = PyroSample(Normal(0.0, 1.0).expand([1]).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.layer(x).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", Normal(mean, self.noise), obs=y)


LOCAL = ("z.code", "z_code", "a b/c", "θ[0]", "keys", "training")


def _many_names(x: Tensor, y: Tensor) -> None:
    total = pyro.sample("g.x", Normal(0.0, 1.0)) + pyro.sample("g_x", Normal(0.0, 1.0))
    pyro.sample("weights/of", Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x), dim=-1):
        for name in LOCAL:
            total = total + pyro.sample(name, Normal(0.0, 1.0))
        k = pyro.sample("k.k", Bernoulli(0.5), infer={"enumerate": "parallel"})
        scale = pyro.param("y.scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("y.obs", Normal(total + k, scale), obs=y)


@pytest.mark.filterwarnings("ignore:Auto.*will not find this guide")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Particles run one by one")
@pytest.mark.parametrize("guide", [None, autoguide.AutoNormal, autoguide.AutoDiagonalNormal])
def test_fit_trains_saves_and_loads_sites_of_modules(guide: Any, tmp_path: Path) -> None:
    model = BayesianLayer()
    built = None if guide is None else guide(model)
    run = fit(model, built, (X, Y), num_steps=3, directory=tmp_path / "run", progress=False)
    loaded = load_run(tmp_path / "run", model=BayesianLayer(), guide=built)
    for name, value in run.parameters().items():
        assert torch.equal(loaded.parameters()[name], value)
    exported = loaded.to_arviz((X, Y), num_samples=20)
    assert {"layer.weight", "layer.bias"} <= set(exported.posterior.data_vars)
    exported.to_netcdf(str(tmp_path / "run.nc"))
    assert (tmp_path / "run" / "pictures" / "posterior.png").exists()


@pytest.mark.slow
def test_fit_trains_sites_of_every_name(tmp_path: Path) -> None:
    run = fit(_many_names, None, (X, Y), num_steps=3, progress=False)
    assert set(run.encode((X, Y))) == {*LOCAL, "k.k"}
    exported = run.to_arviz((X, Y), num_samples=20)
    names = {name.replace("/", ".") for name in LOCAL}  # "/" is a folder in a NetCDF file
    assert {"g.x", "g_x", "weights/of".replace("/", "."), *names} <= set(
        exported.posterior.data_vars
    )
    exported.to_netcdf(str(tmp_path / "run.nc"))


def test_auto_guide_keeps_parameters_of_similar_names_apart() -> None:
    guide = auto_guide(_many_names, X, Y)
    names = [name for name, _ in guide.named_parameters() if "loc" in name]
    assert len(names) == 2
    guide.parts[0].g_x_loc = PyroParam(torch.tensor(5.0))  # of the site without a dot
    trace = pyro.poutine.trace(guide).get_trace(X, Y)
    assert trace.nodes["g_x"]["fn"].mean == 5
    assert trace.nodes["g.x"]["fn"].mean != 5


@pytest.mark.parametrize("name", ["items", "z.code", "training"])
def test_amortized_joint_has_flows_of_sites_of_every_name(name: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(name, Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)

    guide = AmortizedJoint(model, X, factors={name: "affine"})
    value = pyro.poutine.trace(guide).get_trace(X).nodes[name]["value"]
    assert value.shape == (12, 2)


def test_module_names_are_different_and_keep_valid_names() -> None:
    names = module_names(["a.b", "a_b", "c", "keys"], taken={"keys"})
    assert names == {"a_b": "a_b", "c": "c", "a.b": "a_b_", "keys": "keys_"}
