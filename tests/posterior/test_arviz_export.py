"""Export to ArviZ: groups, names, and exact densities."""

from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.particles import sampling, structure
from ppl_lvm.posterior.arviz_container import loo
from ppl_lvm.runs.run import Run
from small_programs import Mean, MeanGuide

GROUPS = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
}


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
    """The exact posterior N(x/2, 1/2), with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.a * x, 0.5**0.5).to_event(1))


def unfitted(model: Any, guide: Any, x: Tensor) -> Run:
    return fit(model, guide, x, num_steps=1, optimizer="SGD(lr=0.0)")


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


def test_export_of_a_global_latent_has_its_exact_densities(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 20)
    data = unfitted(Mean(), MeanGuide(0.3, 0.2), x).to_arviz(x, num_samples=400)
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


def test_export_of_a_summed_out_site_has_its_posterior_draws(tmp_path: Path) -> None:
    x = torch.tensor([[-2.0, 0.1], [2.0, 0.0], [0.0, 0.0]]).repeat(5, 1)
    data = unfitted(Two(), lambda x: None, x).to_arviz(x, num_samples=300)
    assert set(data.groups()) >= GROUPS
    z = data.posterior["z"].values[0]
    assert z.shape == (300, 15)
    assert z[:, 0].mean() < 0.05
    assert z[:, 1].mean() > 0.95
    assert z[:, 2].mean() == pytest.approx(0.5, abs=5 * 0.5 / 300**0.5)
    parts = torch.distributions.Normal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0)
    exact = parts.log_prob(x[:, None]).sum(-1).logsumexp(1) - np.log(2)
    assert np.allclose(data.log_likelihood["x"].values[0, 7], exact.detach(), atol=1e-5)


def test_export_of_a_local_latent_has_the_marginal_log_likelihood(tmp_path: Path) -> None:
    x = torch.linspace(-2, 2, 9)[:, None]
    data = unfitted(Local(), LocalGuide(), x).to_arviz(x, num_samples=100)
    check_groups(data, tmp_path)
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(x[:, 0])
    # The guide is the posterior, so importance weights have no variance.
    assert np.allclose(data.log_likelihood["x"].values[0], exact.expand(100, -1), atol=1e-4)
    assert data.posterior["z"].dims == ("chain", "draw", "data", "z_dim_0")


def test_missing_values_are_missing_from_observed_data_and_not_from_predictions() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            observed = Normal(z.expand(*z.shape[:-1], 3), 1.0).mask(~x.isnan())
            pyro.sample("x", observed.to_event(1), obs=x.nan_to_num(0.0))

    x = torch.randn(7, 3)
    x[2, 1] = x[4] = torch.nan
    data = load_data(x.numpy(), missing="keep")
    exported = unfitted(model, IncompleteRowGuide(), data).to_arviz(data, num_samples=30)
    assert np.array_equal(exported.observed_data["x"].values, x.numpy(), equal_nan=True)
    assert np.isfinite(exported.posterior_predictive["x"].values).all()
    ll = exported.log_likelihood["x"].values[0]
    assert np.abs(ll[:, 4]).max() < 1.0  # no observed value; log 1 up to the guide's error


class IncompleteRowGuide(LocalGuide):
    """Its mean is proportional to the row's mean, and 0 for a row without values."""

    def forward(self, x: Tensor) -> None:
        super().forward(x.nanmean(1, keepdim=True).nan_to_num(0.0))


def moments(data: Any, site: str, weight: Any = None) -> tuple[Any, Any]:
    """Mean and sd (N,) over draws, weighted or not."""
    z = data.posterior[site].values[0]
    z = z.reshape(len(z), -1)
    w = np.full_like(z, 1 / len(z)) if weight is None else weight
    mean = (w * z).sum(0)
    return mean, np.sqrt((w * (z - mean) ** 2).sum(0))


class Narrow(LocalGuide):
    """Its sd is 0.8 of the posterior's, its mean is too large by 0.1."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.a * x + 0.1, 0.8 * 0.5**0.5).to_event(1))


@pytest.mark.parametrize("draws", ["q", "weighted", "resampled"])
def test_weighted_and_resampled_draws_correct_local_latents(draws: Any) -> None:
    x = torch.linspace(-2, 2, 9)[:, None]
    run = unfitted(Local(), Narrow(), x)
    data = run.to_arviz(x, num_samples=2000, draws=draws)
    weight = data.sample_stats["weight"].values[0] if draws == "weighted" else None
    mean, sd = moments(data, "z", weight)
    if draws == "q":
        assert np.allclose(sd, 0.8 * 0.5**0.5, rtol=0.06)
        log_q = data.sample_stats["log_q_per_row"]
        assert log_q.dims == ("chain", "draw", "data")
        z = torch.from_numpy(data.posterior["z"].values[0, :, :, 0])
        exact = torch.distributions.Normal(x[:, 0] / 2 + 0.1, 0.8 * 0.5**0.5).log_prob(z)
        assert np.allclose(log_q.values[0], exact, atol=1e-4)
    else:
        assert np.allclose(mean, x[:, 0] / 2, atol=0.08)
        assert np.allclose(sd, 0.5**0.5, rtol=0.12)
        assert 0.0 < data.attrs["pareto_k"] < 0.8
    if weight is not None:
        assert np.allclose(weight.sum(0), 1)
    if draws == "resampled":
        assert "sample_stats" not in data.groups()
        replicated = data.posterior_predictive["x"].values[0, :, :, 0]
        assert np.allclose(replicated.std(0), 1.5**0.5, rtol=0.1)


def test_weighted_and_resampled_draws_correct_global_latents() -> None:
    x = torch.linspace(-1, 1.5, 20)
    run = unfitted(Mean(), MeanGuide(0.3, 0.2), x)
    mean, sd = float(x.sum()) / 21, 21**-0.5
    weighted = run.to_arviz(x, num_samples=1000, draws="weighted")
    w = weighted.sample_stats["weight"].values[0]
    assert w.shape == (1000,)
    center, spread = moments(weighted, "m", w[:, None])
    assert center[0] == pytest.approx(mean, abs=0.04)
    assert spread[0] == pytest.approx(sd, rel=0.12)
    resampled = run.to_arviz(x, num_samples=1000, draws="resampled")
    center, spread = moments(resampled, "m")
    assert center[0] == pytest.approx(mean, abs=0.04)
    assert spread[0] == pytest.approx(sd, rel=0.12)
    # az.loo of corrected draws equals our loo of q's draws.
    ours = loo(run.to_arviz(x, num_samples=1000))
    assert float(az.loo(resampled).elpd_loo) == pytest.approx(ours.elpd, abs=0.1)
    assert loo(weighted).elpd == pytest.approx(ours.elpd, abs=0.1)


class GlobalAndLocal(PyroModule):
    """m ~ N(0, 1), z_n ~ N(m, 0.6²), x_n ~ N(z_n, 0.8²), so that p(x | m) = N(m, 1)."""

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(m, 0.6))
            pyro.sample("x", Normal(z, 0.8), obs=x)


class GlobalAndLocalGuide(MeanGuide):
    """q(z | x, m) has the right mean and 0.7 of the right sd, 0.48."""

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(self.loc, self.scale))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.64 * m + 0.36 * x, 0.7 * 0.48))


@pytest.mark.slow
def test_local_latents_are_resampled_given_the_global_ones() -> None:
    x = torch.linspace(-1, 1.5, 20)
    data = unfitted(GlobalAndLocal(), GlobalAndLocalGuide(), x).to_arviz(
        x, num_samples=300, draws="resampled"
    )
    m = data.posterior["m"].values[0]
    assert m.mean() == pytest.approx(float(x.sum()) / 21, abs=0.05)
    residual = data.posterior["z"].values[0] - 0.64 * m[:, None] - 0.36 * x.numpy()
    assert residual.std() == pytest.approx(0.48, rel=0.05)


def test_export_rejects_unknown_kinds_of_draws() -> None:
    x = torch.zeros(5)
    with pytest.raises(ValueError, match="'q', 'weighted', 'resampled'"):
        unfitted(Mean(), MeanGuide(0.3, 0.2), x).to_arviz(x, num_samples=5, draws="p")  # type: ignore[arg-type]


class ChangePoint(PyroModule):
    """The mean jumps from mu to mu + 5 at tau, which all rows share."""

    def forward(self, x: Tensor) -> None:
        N, summed = len(x), {"enumerate": "parallel"}
        mu = pyro.sample("m", Normal(0.0, 1.0))
        tau = pyro.sample("tau", Categorical(torch.ones(N) / N), infer=summed)
        with pyro.plate("data", N, dim=-1):
            pyro.sample("x", Normal(mu + 5.0 * (torch.arange(N) >= tau), 1.0), obs=x)


def test_export_of_a_shared_enumerated_site_has_the_terms_that_loo_needs() -> None:
    x = torch.from_numpy(np.random.default_rng(5).normal(np.repeat([0, 5], 12), 1)).float()
    run = unfitted(ChangePoint(), MeanGuide(0.0, 0.25), x)
    data = run.to_arviz(x, num_samples=2000)
    evidence = []
    for rows in [torch.arange(24) != n for n in range(-1, 24)]:
        covariance = torch.eye(int(rows.sum()), dtype=torch.float64) + 1.0
        means = 5.0 * (torch.arange(24) >= torch.arange(24)[:, None]).double()[:, rows]
        normal = torch.distributions.MultivariateNormal(means, covariance)
        evidence.append(normal.log_prob(x[rows].double()).logsumexp(0))
    exact = np.array([float(evidence[0] - e) for e in evidence[1:]])
    result = loo(data)
    np.testing.assert_allclose(result.elpd_i, exact, rtol=0, atol=0.05)
    draws = data.log_likelihood["x"].values[0]
    assert draws.shape == (2000, 24)
    assert len(np.unique(draws[0].round(4))) > 12
    # Draws of q, taken for draws of the posterior, are off by the error of q alone.
    plain = -np.log(np.exp(-draws.astype(float)).mean(0))
    assert np.abs(plain - exact).max() < 0.5


def test_export_without_terms_by_row_has_no_log_likelihood() -> None:
    class Event(PyroModule):
        def forward(self, x: Tensor) -> None:
            m = pyro.sample("m", Normal(0.0, 1.0))
            pyro.sample("x", Normal(m[..., None].expand(*m.shape, 20), 1.0).to_event(1), obs=x)

    x = torch.randn(20)
    run = unfitted(Mean(), MeanGuide(0.0, 0.2), x)
    run.pair.model = Event()
    with pytest.warns(UserWarning, match="no log_likelihood.*inside a plate over rows"):
        data = run.to_arviz(x, num_samples=5)
    assert "log_likelihood" not in data.groups()
    log_p = data.sample_stats["log_p"].values[0]
    m = torch.from_numpy(data.posterior["m"].values[0])
    exact = Normal(0.0, 1.0).log_prob(m) + Normal(m[:, None], 1.0).log_prob(x).sum(1)
    np.testing.assert_allclose(log_p, exact, rtol=0, atol=1e-4)


def test_terms_of_the_log_likelihood_are_named_after_the_rows_and_not_an_outer_plate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("groups", 3, dim=-2):
            m = pyro.sample("m", Normal(0.0, 1.0))
            with pyro.plate("rows", len(x), dim=-1):
                pyro.sample("x", Normal(m, 1.0), obs=x.T)

    data = unfitted(model, None, torch.randn(5, 3)).to_arviz(torch.randn(5, 3), num_samples=4)
    assert data.log_likelihood["x"].dims == ("chain", "draw", "rows")
    assert data.observed_data["x"].dims == ("groups", "rows")


def test_export_analyzes_the_pair_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    analyses = []

    def count(*args: Any, **options: Any) -> Any:
        analyses.append(1)
        return structure.analyze_pair(*args, **options)

    monkeypatch.setattr(sampling, "analyze_pair", count)
    x = torch.randn(1000, 1)
    run = unfitted(Local(), LocalGuide(), x)
    analyses.clear()
    run.to_arviz(x, num_samples=20)
    assert len(analyses) < 5
