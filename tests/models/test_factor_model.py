"""Factor models against SciPy's densities integrated over z."""

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.factor_model import LIKELIHOODS, FactorModel

pytestmark = pytest.mark.usefixtures("doubles")


def _counts(N: int = 60) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(N, 1, generator=draw)
    rate = (z * torch.tensor([0.8, -0.5, 0.3]) + torch.tensor([0.5, 1.0, 2.0])).exp()
    return torch.poisson(rate, generator=draw)


def _started(likelihood: str, x: Tensor) -> FactorModel:
    model = FactorModel(1, likelihood=likelihood)
    model.initialize(x)
    return model


def _density(model: FactorModel, eta: np.ndarray, p: int) -> Any:
    if model.likelihood == "poisson":
        return scipy.stats.poisson(np.exp(eta))
    if model.likelihood == "bernoulli":
        return scipy.stats.bernoulli(1 / (1 + np.exp(-eta)))
    a = model.dispersion[p].item()
    return scipy.stats.nbinom(1 / a, 1 / (1 + a * np.exp(eta)))


SLOW = pytest.mark.slow
SOME = [name if k == 0 else pytest.param(name, marks=SLOW) for k, name in enumerate(LIKELIHOODS)]


@pytest.mark.parametrize("likelihood", SOME)
def test_factor_model_log_evidence_equals_the_integral(likelihood: str) -> None:
    x = _counts() if likelihood != "bernoulli" else (_counts() > 2).double()
    model = _started(likelihood, x)
    holed = x[:3].clone()
    holed[1, 2] = torch.nan
    W, b = model.W.detach().numpy()[:, 0], model.b.detach().numpy()
    for row, result in zip(holed.numpy(), model.log_evidence(holed).tolist(), strict=True):

        def joint(z: float, row: np.ndarray = row) -> float:
            seen = [p for p in range(3) if not np.isnan(row[p])]
            mass = [_density(model, W[p] * z + b[p], p).pmf(row[p]) for p in seen]
            return float(scipy.stats.norm.pdf(z) * np.prod(mass))

        exact, _ = scipy.integrate.quad(joint, -9, 9, epsabs=1e-13)
        assert result == pytest.approx(np.log(exact), abs=1e-8)


def _informative(
    likelihood: str, P: int, latent: int = 1, N: int = 12
) -> tuple[FactorModel, Tensor]:
    """A model whose P columns determine z well, and rows drawn from it."""
    draw = torch.Generator().manual_seed(P)
    model = FactorModel(latent, P, likelihood=likelihood)
    with torch.no_grad():
        model.W.copy_(torch.randn(P, latent, generator=draw))
        model.b.copy_(0.5 * torch.randn(P, generator=draw) + 1.0)
    z = 1.5 * torch.randn(N, latent, generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(P)
        return model, model._likelihood_of(z).sample().detach()


def _log_joint(model: FactorModel, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) of points z (..., 1, D) and rows x (N, P): (..., N)."""
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return (model._likelihood_of(z).log_prob(x).sum(-1) + prior).detach()


def _fixed_nodes(model: FactorModel, x: Tensor, nodes: int = 41) -> Tensor:
    """log p(x_n) by nodes fixed at the prior: the wrong twin."""
    t, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    z = t[:, None, None]
    log_prob = model._likelihood_of(z).log_prob(x).sum(-1).detach()
    return (log_prob + (w / w.sum()).log()[:, None]).logsumexp(0)


@pytest.mark.slow
@pytest.mark.parametrize("P", [20, 60])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_factor_model_log_evidence_equals_a_fine_grid_for_many_columns(
    likelihood: str, P: int
) -> None:
    model, x = _informative(likelihood, P)
    grid = torch.linspace(-6.0, 6.0, 60_001)[:, None, None]
    rows = [_log_joint(model, row[None], grid).logsumexp(0) + np.log(2e-4) for row in x]
    exact = torch.cat(rows)
    value, error = model.quadrature(x)
    torch.testing.assert_close(value.detach(), exact, rtol=0, atol=1e-5)
    assert (error < 1e-5).all()
    if likelihood == "poisson":
        off = _fixed_nodes(model, x) - exact
        assert off.min() < -0.5, off
        assert off.max() > 0.5, off


@pytest.mark.parametrize("P", [20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_factor_model_log_evidence_equals_importance_sampling_with_two_factors(
    likelihood: str, P: int
) -> None:
    model, x = _informative(likelihood, P, latent=2, N=4)
    grid = torch.cartesian_prod(*[torch.linspace(-5.0, 5.0, 201)] * 2)[:, None]
    log_joint = _log_joint(model, x, grid)  # (Q, N)
    weight = log_joint.softmax(0)
    mean = torch.einsum("qn,qd->nd", weight, grid[:, 0])
    d = grid - mean
    S = 2 * torch.einsum("qn,qnd,qne->nde", weight, d, d) + 1e-3 * torch.eye(2)
    proposal = torch.distributions.MultivariateNormal(mean, S)
    torch.manual_seed(0)
    z = proposal.sample((20_000,))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_w = (model._likelihood_of(z).log_prob(x).sum(-1) + prior - proposal.log_prob(z)).detach()
    w = (log_w - log_w.max(0).values).exp()
    estimate = w.mean(0).log() + log_w.max(0).values
    error = w.std(0) / w.mean(0) / len(w) ** 0.5
    assert ((model.log_evidence(x).detach() - estimate).abs() < 5 * error + 1e-6).all()


def test_factor_model_log_evidence_reports_the_error_of_the_quadrature() -> None:
    model, x = _informative("bernoulli", 3, latent=3)
    with torch.no_grad():
        model.W.mul_(30.0)
    with pytest.warns(UserWarning, match=r"of 12 rows has an estimated error of up to .* nats"):
        model.log_evidence(x, 5)
    model, x = _informative("poisson", 20, latent=3)
    value, error = model.quadrature(x)
    finer, _ = model.quadrature(x, 24)
    assert ((value - finer).abs() <= error + 1e-9).all()


def test_factor_model_log_evidence_is_finite_and_differentiable_where_means_overflow() -> None:
    model, x = FactorModel(1, 1), torch.tensor([[0.0], [3.0]])
    with torch.no_grad():
        model.W.fill_(200.0)
    model.log_evidence(x, 80).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_factor_model_ignores_missing_values(likelihood: str) -> None:
    x = _counts(5) if likelihood != "bernoulli" else (_counts(5) > 2).double()
    model = _started(likelihood, x)
    z = torch.randn(5, 1)
    eta = (z @ model.W.mT + model.b).detach().numpy()
    each = np.stack([_density(model, eta[:, p], p).logpmf(x[:, p]) for p in range(3)], -1)
    x[1, 2], x[3] = torch.nan, torch.nan
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    result = trace.nodes["x"]["log_prob"].detach().numpy()
    np.testing.assert_allclose(result, np.where(x.isnan(), 0.0, each).sum(-1), atol=1e-12)


def test_factor_model_negative_binomial_has_the_variance_of_its_dispersion() -> None:
    model = _started("negative-binomial", _counts())
    fn = model._likelihood_of(torch.randn(4, 1))
    torch.testing.assert_close(fn.variance, fn.mean + model.dispersion * fn.mean.square())


def test_factor_model_fit_estimates_the_integral_as_evidence() -> None:
    x = _counts()
    run = fit(FactorModel, AmortizedNormal, x, settings={"latent": 1}, num_steps=150)
    model: Any = run.model
    exact = model.log_evidence(x).mean().item()
    drawn = run.log_evidence(x, 500)
    assert drawn.value == pytest.approx(exact, abs=5 * drawn.monte_carlo_error)
    assert run.results["bound"] < exact
    start = _started("poisson", x)
    assert exact > start.log_evidence(x).mean().item()


@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        ("poisson", -1.0, r"needs counts 0, 1, 2, …, but row 4, column 1 of x is -1"),
        ("negative-binomial", 0.5, r"row 4, column 1 of x is 0\.5"),
        ("bernoulli", 2.0, r"needs 0 or 1, but row 4, column 1 of x is 2"),
    ],
)
def test_factor_model_rejects_values_outside_the_support(
    likelihood: str, value: float, message: str
) -> None:
    x = torch.ones(8, 3)
    x[4, 1] = value
    with pytest.raises(ValueError, match=message):
        FactorModel(1, likelihood=likelihood).initialize(x)
    model = FactorModel(1, 3, likelihood=likelihood)
    findings = check(model, AmortizedNormal(model, torch.ones(8, 3)), x)
    assert "'x'" in str(findings.errors[0])
