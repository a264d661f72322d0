"""Exposure of counts against closed forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro.distributions import Gamma, Poisson
from torch import Tensor

from ppl_lvm import fit, fit_mcem, load_data, load_run
from ppl_lvm.models import FactorModel
from tests.support.command_line import run_command

pytestmark = pytest.mark.usefixtures("doubles")

HOURS = torch.tensor([0.5, 1.0, 3.0, 10.0], dtype=torch.float64)
X = torch.tensor([[0.0, 2.0], [1.0, 3.0], [4.0, torch.nan], [9.0, 25.0]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["poisson", "negative-binomial"])
def test_exposure_multiplies_the_rate_in_the_integral(likelihood: str) -> None:
    model = FactorModel(1, 2, likelihood=likelihood).double()
    with torch.no_grad():
        model.W.copy_(torch.tensor([[0.8], [-0.5]]))
        model.b.copy_(torch.tensor([0.2, 1.0]))
    W, b = model.W.detach().numpy()[:, 0], model.b.detach().numpy()
    value = model.log_evidence(X, exposure=HOURS)
    for n, e in enumerate(HOURS.tolist()):

        def joint(z: float, n: int = n, e: float = e) -> float:
            mass = 1.0
            for p in range(2):
                m = e * np.exp(W[p] * z + b[p])
                fn: Any = scipy.stats.poisson(m)
                if likelihood != "poisson":  # dispersion 1: one failure, mean m
                    fn = scipy.stats.nbinom(1, 1 / (1 + m))
                mass *= 1.0 if X[n, p].isnan() else fn.pmf(X[n, p].item())
            return float(scipy.stats.norm.pdf(z) * mass)

        exact, _ = scipy.integrate.quad(joint, -9, 9, epsabs=1e-14)
        assert value[n].item() == pytest.approx(np.log(exact), abs=1e-7)
    assert (model.log_evidence(X) - value)[[0, 2, 3]].abs().min() > 0.1  # the wrong twin ignores it
    one = model.log_evidence(X, exposure=torch.ones(4))
    torch.testing.assert_close(one, model.log_evidence(X))


def test_exposure_enters_the_initial_rates() -> None:
    torch.manual_seed(0)
    hours = torch.linspace(0.5, 20, 400)
    x = torch.poisson(hours[:, None] * torch.tensor([0.3, 2.0]))
    model = FactorModel(1, likelihood="negative-binomial")
    model.initialize(x, hours)
    rates = x.sum(0) / hours.sum()
    torch.testing.assert_close(model.b.detach().exp(), rates, rtol=1e-2, atol=0)
    assert (model.dispersion < 0.1).all()  # Poisson counts have none


def rate_model(x: Tensor, exposure: Tensor) -> None:
    """λ ~ Gamma(2, 1), x_n ~ Poisson(e_n λ): λ | x ~ Gamma(2 + Σ x, 1 + Σ e)."""
    rate = pyro.sample("rate", Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Poisson(rate * exposure), obs=x)


def test_fit_with_exposure_is_the_conjugate_posterior() -> None:
    hours = torch.tensor([0.5, 1.0, 3.0, 10.0, 2.0])
    x = torch.tensor([1.0, 2.0, 5.0, 22.0, 3.0])

    def guide(x: Tensor, exposure: Tensor) -> None:
        a = pyro.param("a", torch.tensor(35.0))
        pyro.sample("rate", Gamma(a, pyro.param("b", torch.tensor(17.5))))

    run = fit(rate_model, guide, x, exposure=hours, num_steps=1, optimizer="SGD(lr=0.0)")
    a, b = 2 + x.sum(), 1 + hours.sum()
    assert (a, b) == (35.0, 17.5)
    # log p(x) = log p(x, λ) - log p(λ | x) at λ = 1
    exact = Poisson(hours).log_prob(x).sum()
    exact = exact + (
        Gamma(2.0, 1.0).log_prob(torch.tensor(1.0)) - Gamma(a, b).log_prob(torch.tensor(1.0))
    )
    assert run.log_evidence((x, hours)).value == pytest.approx(float(exact) / 5, abs=1e-9)
    with pytest.raises(ValueError, match=r"exposure: row 1 has the exposure 0. Exposures must be"):
        fit(rate_model, guide, x, exposure=[1, 0, 1, 1, 1], num_steps=1)
    with pytest.raises(ValueError, match="Give one exposure per row"):
        fit(rate_model, guide, x, exposure=[1.0, 2.0], num_steps=1)
    with pytest.raises(ValueError, match="exposure='h': the data are loaded"):
        fit(rate_model, guide, load_data(x), exposure="h", num_steps=1)


def test_bernoulli_columns_refuse_an_exposure() -> None:
    with pytest.raises(ValueError, match="exposure: a Bernoulli column has no rate"):
        FactorModel(1, 2, likelihood="bernoulli").log_evidence(X.clamp(max=1), exposure=HOURS)


def _file(folder: Path) -> Path:
    rows = ["a,b,hours,w"] + [f"{n % 4},{n % 3},{1 + n % 5},{n % 2 + 1}" for n in range(20)]
    (folder / "visits.csv").write_text("\n".join(rows))
    return folder / "visits.csv"


def test_load_data_takes_the_exposure_from_a_column(tmp_path: Path) -> None:
    data = load_data(_file(tmp_path), exposure="hours", weights="w")
    x, hours = data.tensors
    assert x.shape == (20, 2)
    assert torch.equal(hours, 1.0 + torch.arange(20) % 5)
    assert data.weights is not None
    assert data.weights[:2].tolist() == [1.0, 2.0]
    selected = load_data(tmp_path / "visits.csv", columns=["b"], exposure="hours")
    assert selected.tensors[0].shape == (20, 1)
    with pytest.raises(ValueError, match=r"no column 'hour' with exposures.* Did you mean hours"):
        load_data(tmp_path / "visits.csv", exposure="hour")


@pytest.mark.slow
def test_fit_command_and_reloaded_run_keep_the_exposure(tmp_path: Path) -> None:
    _file(tmp_path)
    words = ("fit", "ppl_lvm.models:FactorModel", "--data", "visits.csv", "--exposure", "hours")
    result = run_command(
        *words,
        "--columns",
        "a,b",
        "--set",
        "latent=1",
        "--num-steps",
        "20",
        "--directory",
        "run",
        "--validation",
        "5",
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    run = load_run(tmp_path / "run")
    x, hours = load_data(tmp_path / "visits.csv", columns=["a", "b"], exposure="hours").tensors
    batch = run.batch(tmp_path / "visits.csv")
    assert torch.equal(batch[1], hours)
    assert len(run.data()[0]) == 15
    drawn, exact = run.log_evidence((x, hours), 2000), run.model.log_evidence(x, exposure=hours)
    assert drawn.value == pytest.approx(exact.mean().item(), abs=5 * drawn.standard_error + 1e-3)


@pytest.mark.slow
def test_monte_carlo_em_takes_an_exposure() -> None:
    torch.manual_seed(0)
    hours = torch.rand(30) + 0.5
    x = torch.poisson(hours[:, None] * torch.tensor([2.0, 5.0]))
    run = fit_mcem(
        FactorModel(1), x, exposure=hours, max_iterations=2, num_draws=3, warmup=5, guide_steps=5
    )
    assert run.parameters()["b"].exp().sum() == pytest.approx(7.0, abs=2.0)
