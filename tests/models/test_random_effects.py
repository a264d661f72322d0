"""Eight schools: quadrature against SciPy, NUTS and a guide."""

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.random_effects import RandomEffects

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.fixture
def schools() -> Tensor:
    return load_data("eight_schools").tensors[0]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Exact posterior mean and standard deviation of (μ, θ_1 … θ_N), mixing over τ."""
    model = RandomEffects()
    tau, log_joint, log_weight = model.spread_posterior(x)
    share = (log_joint + log_weight).softmax(0)[:, None]  # (Q, 1)
    y, s = x.unbind(-1)
    variance = tau[:, None].square() + s.square()
    v = 1 / ((1 / variance).sum(-1) + model.mean_scale**-2)
    mu = v * (y / variance).sum(-1)  # E[μ | τ], var v
    pull = tau[:, None].square() / variance  # θ = μ + pull (y - μ) + noise
    theta = mu[:, None] + pull * (y - mu[:, None])
    local = s.square() * pull + (1 - pull).square() * v[:, None]
    mean = torch.cat([mu[:, None], theta], -1)
    second = torch.cat([v[:, None], local], -1) + mean.square()
    first = (share * mean).sum(0)
    return first, ((share * second).sum(0) - first.square()).sqrt()


def test_eight_schools_are_the_data_of_rubin(schools: Tensor) -> None:
    data = load_data("eight_schools")
    assert data.label_names == list("ABCDEFGH")
    weights = 1 / schools[:, 1].square()  # the pooled estimate of Rubin (1981) is 7.7 ± 4.1
    assert ((weights * schools[:, 0]).sum() / weights.sum()).item() == pytest.approx(7.7, abs=0.05)
    assert weights.sum().item() ** -0.5 == pytest.approx(4.1, abs=0.05)


def test_random_effects_log_evidence_equals_the_integral(schools: Tensor) -> None:
    x = schools[:3]
    y, s = x.numpy().T

    def joint(tau: float) -> float:
        covariance = np.diag(s**2 + tau**2) + 25.0
        mass = scipy.stats.multivariate_normal(np.zeros(3), covariance).pdf(y)
        return float(mass * scipy.stats.halfcauchy(scale=5).pdf(tau))

    exact, _ = scipy.integrate.quad(joint, 0, np.inf, epsabs=1e-15)
    assert RandomEffects().log_evidence(x).item() == pytest.approx(np.log(exact), abs=1e-7)


@pytest.mark.slow
def test_random_effects_guide_fits_the_non_centered_form_only(schools: Tensor) -> None:
    exact = RandomEffects().log_evidence(schools).item()
    short = []
    for centered in (False, True):
        run = fit(
            RandomEffects(centered), AutoNormal, schools, num_steps=300, optimizer="Adam(lr=0.05)"
        )
        drawn = run.log_evidence(schools, 4000)
        short.append(exact - 8 * drawn.value)
        assert 8 * (run.results["bound"] - 5 * run.results["bound_monte_carlo_error"]) < exact
        if not centered:
            assert abs(short[0]) < 0.5  # nats; the weights have k̂ near 0.7, and no error
    assert short[1] > 1  # nats: the funnel


@pytest.mark.slow
def test_random_effects_nuts_reaches_the_exact_moments(schools: Tensor) -> None:
    mean, deviation = _moments(schools)
    model = RandomEffects()
    mcmc = MCMC(NUTS(model), num_samples=250, warmup_steps=150, disable_progbar=True)
    mcmc.run(schools)
    draws: Any = mcmc.get_samples()
    theta = model.effects(draws["mu"], draws["tau"], draws["eta"])
    result = torch.cat([draws["mu"][:, None], theta], -1)
    for j in range(9):
        effective = effective_sample_size(result[None, :, j]).item()
        error = deviation[j].item() / effective**0.5
        assert result[:, j].mean().item() == pytest.approx(mean[j].item(), abs=5 * error)
        assert result[:, j].std().item() == pytest.approx(deviation[j].item(), abs=5 * error)


def test_random_effects_joint_density_equals_scipy(schools: Tensor) -> None:
    mu, tau, eta = 2.0, 3.0, np.linspace(-1, 2, 8)
    y, s = schools.numpy().T
    exact = (
        scipy.stats.norm(0, 4.0).logpdf(mu)
        + scipy.stats.halfcauchy(scale=6.0).logpdf(tau)
        + scipy.stats.norm.logpdf(eta).sum()
        + scipy.stats.norm(mu + tau * eta, s).logpdf(y).sum()
    )
    latents = {k: torch.as_tensor(v) for k, v in (("mu", mu), ("tau", tau), ("eta", eta))}
    model = poutine.condition(RandomEffects(mean_scale=4.0, spread_scale=6.0), latents)
    result = poutine.trace(model).get_trace(schools).log_prob_sum().item()
    assert result == pytest.approx(exact, rel=1e-12)


def test_random_effects_both_parameterizations_are_one_model(schools: Tensor) -> None:
    mu, tau, eta = torch.tensor(2.0), torch.tensor(3.0), torch.randn(8)
    theta = RandomEffects().effects(mu, tau, eta)
    result = []
    for centered, latent in ((False, {"eta": eta}), (True, {"theta": theta})):
        model = poutine.condition(RandomEffects(centered), {"mu": mu, "tau": tau, **latent})
        result.append(poutine.trace(model).get_trace(schools).log_prob_sum().item())
    assert result[0] - 8 * tau.log().item() == pytest.approx(result[1], rel=1e-12)  # dη = dθ / τ
