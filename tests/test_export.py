"""A fitted pair in ArviZ: the groups, their names, and densities that are what they say."""

from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.fit import fit
from ppl_lvm.run import Run

GROUPS = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
}


class Mean(PyroModule):
    """m ~ N(0, 1), x_n ~ N(m, 1)."""

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(m, 1.0), obs=x)


class MeanGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.scale = PyroParam(torch.tensor(0.2), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        pyro.sample("m", Normal(self.loc, self.scale))


class Two(PyroModule):
    """z_n ~ Categorical(w), x_n ~ N(m_z, 1), z summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.m[z], 1.0).to_event(1), obs=x)


class Local(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1): log p(x_n) = log N(x_n; 0, 2)."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)


class LocalGuide(PyroModule):
    """The exact posterior N(x/2, 1/2), but for a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.a * x, 0.5**0.5).to_event(1))


def still(model: Any, guide: Any, x: Tensor) -> Run:
    return fit(model, guide, x, num_steps=1, optimizer="SGD(lr=0.0)", progress=False)


def check_groups(data: Any, tmp_path: Path) -> None:
    assert set(data.groups()) >= GROUPS
    assert len(az.summary(data, kind="stats")) > 0
    az.plot_ppc(data, num_pp_samples=5)
    data.to_netcdf(str(tmp_path / "x.nc"))
    back = az.from_netcdf(str(tmp_path / "x.nc"))
    assert set(back.groups()) == set(data.groups())
    for group in GROUPS:
        for name in data[group].data_vars:
            assert np.array_equal(back[group][name].values, data[group][name].values)
    back.close()


def test_a_global_latent(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 20)
    data = still(Mean(), MeanGuide(), x).to_arviz(x, num_samples=400)
    check_groups(data, tmp_path)
    m = torch.as_tensor(data.posterior["m"].values[0])
    assert m.shape == (400,)
    assert float(m.mean()) == pytest.approx(0.3, abs=5 * 0.2 / 20)
    ll = torch.distributions.Normal(m[:, None], 1.0).log_prob(x)
    assert np.allclose(data.log_likelihood["x"].values[0], ll, atol=1e-5)
    joint = ll.sum(1) + torch.distributions.Normal(0.0, 1.0).log_prob(m)
    assert np.allclose(data.sample_stats["log_p"].values[0], joint, atol=1e-4)
    log_q = torch.distributions.Normal(0.3, 0.2).log_prob(m)
    assert np.allclose(data.sample_stats["log_q"].values[0], log_q, atol=1e-4)
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "data")
    assert np.isfinite(float(az.loo(data).elpd_loo))
    # The prior group is drawn from the prior N(0, 1), not from the guide N(0.3, 0.2²).
    assert data.prior["m"].values.std() == pytest.approx(1.0, abs=5 / 800**0.5)


def test_a_summed_out_site(tmp_path: Path) -> None:
    x = torch.tensor([[-2.0, 0.1], [2.0, 0.0], [0.0, 0.0]]).repeat(5, 1)
    data = still(Two(), lambda x: None, x).to_arviz(x, num_samples=300)
    assert set(data.groups()) >= GROUPS
    z = data.posterior["z"].values[0]
    assert z.shape == (300, 15)
    assert z[:, 0].mean() < 0.05
    assert z[:, 1].mean() > 0.95
    assert z[:, 2].mean() == pytest.approx(0.5, abs=5 * 0.5 / 300**0.5)
    parts = torch.distributions.Normal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0)
    exact = parts.log_prob(x[:, None]).sum(-1).logsumexp(1) - np.log(2)
    assert np.allclose(data.log_likelihood["x"].values[0, 7], exact.detach(), atol=1e-5)


def test_a_local_latent_has_the_marginal_log_likelihood(tmp_path: Path) -> None:
    x = torch.linspace(-2, 2, 9)[:, None]
    data = still(Local(), LocalGuide(), x).to_arviz(x, num_samples=100)
    check_groups(data, tmp_path)
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(x[:, 0])
    # The guide is the posterior, so importance weights have no variance.
    assert np.allclose(data.log_likelihood["x"].values[0], exact.expand(100, -1), atol=1e-4)
    assert data.posterior["z"].dims == ("chain", "draw", "data", "z_dim_0")
