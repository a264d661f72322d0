"""Closed-form bounds and pathwise gradients of a linear-Gaussian pair.

    z_n ~ N(0, I_D),  x_n ~ N(W z_n, s² I_P),  q(z_n | x_n) = N(A x_n + a, diag σ²)

The evidence is Gaussian, the posterior N(V Wᵀ x / s², V) with V = (I + WᵀW / s²)⁻¹, and the Rényi
divergence between two Gaussians has a closed form. Sample means must agree within five standard
errors.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor, nn

from ppl_lvm.estimators import (
    ELBO,
    IWAE,
    DReG,
    DReGRenyi,
    Renyi,
    ScoreFunction,
    StickingTheLanding,
    VRMax,
)
from ppl_lvm.estimators.base import Estimator

D, P = 2, 3


class LinearGaussian(nn.Module):
    """The pair above; `at_posterior` makes q exact."""

    def __init__(self, rows: int = 3) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(5)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen, dtype=torch.float64)

        self.W = nn.Parameter(randn(P, D))
        self.A = nn.Parameter(0.3 * randn(D, P))
        self.log_sigma = nn.Parameter(0.2 * randn(D) - 0.5)
        self.s = 0.8
        self.x = randn(rows, P)
        self.factor: Tensor | None = None

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(D, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", Normal(z @ self.W.T, self.s).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            loc = x @ self.A.T
            if self.factor is not None:
                pyro.sample("z", MultivariateNormal(loc, scale_tril=self.factor))
            else:
                pyro.sample("z", Normal(loc, self.log_sigma.exp()).to_event(1))

    def posterior(self) -> tuple[Tensor, Tensor]:
        """(mean (B, D), covariance (D, D))."""
        V = torch.linalg.inv(torch.eye(D, dtype=torch.float64) + self.W.T @ self.W / self.s**2)
        return self.x @ self.W @ V / self.s**2, V

    def at_posterior(self) -> "LinearGaussian":
        _, V = self.posterior()
        self.A.data = (V @ self.W.T / self.s**2).detach()
        self.factor = nn.Parameter(torch.linalg.cholesky(V).detach())
        return self

    def log_evidence(self) -> Tensor:
        cov = self.W @ self.W.T + self.s**2 * torch.eye(P, dtype=torch.float64)
        return MultivariateNormal(torch.zeros(P, dtype=torch.float64), cov).log_prob(self.x)

    def elbo(self) -> Tensor:
        return self.log_evidence() - self.divergence(1.0)

    def divergence(self, alpha: float) -> Tensor:
        """Rényi's D_α(q || p(z | x)), per row (B,); α = 1 is Kullback-Leibler."""
        m, V = self.posterior()
        d = self.x @ self.A.T - m
        Q = torch.diag((2 * self.log_sigma).exp())
        if alpha == 1.0:
            inv = torch.linalg.inv(V)
            quad = torch.einsum("bi,ij,bj->b", d, inv, d)
            return 0.5 * (quad + torch.trace(inv @ Q) - D + torch.logdet(V) - torch.logdet(Q))
        S = alpha * V + (1 - alpha) * Q
        quad = torch.einsum("bi,ij,bj->b", d, torch.linalg.inv(S), d)
        logdet = torch.logdet(S) - (1 - alpha) * torch.logdet(Q) - alpha * torch.logdet(V)
        return 0.5 * alpha * quad - logdet / (2 * (alpha - 1))

    def gradient(self, loss: Tensor) -> Tensor:
        params = [self.W, self.A, self.log_sigma if self.factor is None else self.factor]
        grads = torch.autograd.grad(loss, params)
        return torch.cat([g.reshape(-1) for g in grads])


def repeated(lg: LinearGaussian, estimator: Estimator, draws: int) -> Tensor:
    """Bounds of many independent draws: (draws, B)."""
    estimator.analyze(lg.model, lg.guide, (lg.x,), {})  # on few rows
    particles = estimator.draw(lg.model, lg.guide, (lg.x.repeat(draws, 1),), {})
    return estimator.bound(particles).detach().reshape(draws, -1)


def gradients(lg: LinearGaussian, estimator: Estimator, draws: int) -> Tensor:
    """Gradient estimates of many independent calls: (draws, parameters)."""
    run = estimator.differentiable_loss
    return torch.stack([lg.gradient(run(lg.model, lg.guide, lg.x)) for _ in range(draws)])


def assert_mean(sample: Tensor, expected: Tensor) -> None:
    """Require the sample mean within five standard errors (equal without variance)."""
    error = sample.std(0) / math.sqrt(len(sample))
    assert ((sample.mean(0) - expected).abs() <= 5 * error + 1e-9).all()


@pytest.mark.slow
def test_bounds_are_ordered_and_below_the_evidence() -> None:
    lg = LinearGaussian()
    estimators: list[Estimator] = [ELBO(analytic_kl=False)]
    estimators += [IWAE(num_particles=K) for K in (2, 5, 50)]
    samples = [repeated(lg, e, 20_000).mean(1) for e in estimators]
    means = [float(s.mean()) for s in samples]
    errors = [float(s.std()) / math.sqrt(len(s)) for s in samples]
    means.append(float(lg.log_evidence().detach().mean()))
    assert means == sorted(means)
    gaps = [b - a for a, b in pairwise(means)]
    assert all(gap > 5 * e for gap, e in zip(gaps, errors, strict=True))


def test_elbo_has_its_closed_form() -> None:
    lg = LinearGaussian()
    assert_mean(repeated(lg, ELBO(analytic_kl=False), 20_000), lg.elbo().detach())
    assert_mean(repeated(lg, ELBO(), 20_000), lg.elbo().detach())


def test_analytic_kl_has_no_variance_if_data_do_not_depend_on_z() -> None:
    lg = LinearGaussian()
    lg.W.data.zero_()
    with_kl, without = (repeated(lg, ELBO(analytic_kl=a), 100) for a in (True, False))
    assert with_kl.std(0).max() < 1e-12
    assert without.std(0).min() > 0.1
    assert torch.allclose(with_kl[0], lg.elbo())


def test_analytic_kl_is_not_used_if_prior_depends_on_later_guide_site() -> None:
    """p(a | b), but q(b | a): the KL of a would depend on a later draw."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", Normal(0.0, 1.0))
            a = pyro.sample("a", Normal(b, 1.0))
            pyro.sample("x", Normal(a, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Normal(x, 1.0))
            pyro.sample("b", Normal(0.5 * a, 1.0))

    particles = ELBO().draw(model, guide, (torch.zeros(2),), {})
    assert particles.site_draws["a"].analytic() is None
    assert particles.site_draws["b"].analytic() is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [ELBO(), ELBO(num_particles=2, analytic_kl=False), StickingTheLanding()], ids=str
)
def test_elbo_gradients_have_their_closed_form(estimator: Estimator) -> None:
    lg = LinearGaussian()
    assert_mean(gradients(lg, estimator, 1_000), lg.gradient(-lg.elbo().sum()))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 2.0])
def test_renyi_converges_to_its_closed_form(alpha: float) -> None:
    lg = LinearGaussian()
    lg.log_sigma.data -= 0.3  # so that α = 2 exists
    expected = (lg.log_evidence() - lg.divergence(alpha)).detach()
    sample = repeated(lg, Renyi(num_particles=2_000, alpha=alpha), 40)
    bias = 0.02 if alpha < 1 else 0.1  # of order 1/K
    assert ((sample.mean(0) - expected).abs() < bias).all()


def test_renyi_decreases_in_alpha_with_vr_max_as_limit() -> None:
    lg = LinearGaussian()
    particles = IWAE(num_particles=6).draw(lg.model, lg.guide, (lg.x,), {})
    orders = [-1000.0, -2.0, 0.0, 0.5, 1.0, 2.0, 5.0]
    bounds = [Renyi(alpha=a).bound(particles) for a in orders]
    for higher, lower in pairwise(bounds):
        assert (higher > lower).all()
    assert torch.allclose(bounds[0], VRMax().bound(particles), atol=0.01)
    assert torch.allclose(bounds[2], IWAE(num_particles=6).bound(particles))
    assert torch.allclose(bounds[4], particles.log_w.mean(0))
    near = Renyi(alpha=1 + 1e-6).bound(particles)
    assert torch.allclose(near, bounds[4], atol=1e-4)


def test_is_bound_depends_on_alpha() -> None:
    assert Renyi(alpha=0.5).is_bound
    assert not Renyi(alpha=-1.0).is_bound
    assert not VRMax().is_bound


@pytest.mark.parametrize("estimator", [ELBO(), IWAE(num_particles=3), Renyi(alpha=0.5)], ids=str)
def test_bound_equals_evidence_at_posterior(estimator: Estimator) -> None:
    lg = LinearGaussian().at_posterior()
    if isinstance(estimator, ELBO):
        estimator = ELBO(analytic_kl=False)
    bound = -estimator.loss(lg.model, lg.guide, lg.x)
    assert bound == pytest.approx(float(lg.log_evidence().detach().sum()), abs=1e-9)


@pytest.mark.parametrize(
    ("estimator", "zero"),
    [
        (StickingTheLanding(num_particles=2), True),
        (DReG(num_particles=3), True),
        (DReGRenyi(num_particles=3, alpha=0.5), True),
        (ELBO(analytic_kl=False), False),
        (IWAE(num_particles=3), False),
    ],
    ids=str,
)
def test_guide_gradient_variance_at_posterior(estimator: Any, zero: bool) -> None:
    lg = LinearGaussian().at_posterior()
    guide_part = gradients(lg, estimator, 20)[:, P * D :]
    spread = float(guide_part.std(0).max())
    assert spread < 1e-12 if zero else spread > 0.1
    if zero:
        assert guide_part.abs().max() < 1e-12


def test_sticking_the_landing_drops_the_score_term() -> None:
    lg = LinearGaussian()
    stl, elbo = StickingTheLanding(), ELBO(analytic_kl=False)
    pyro.set_rng_seed(1)
    a = lg.gradient(stl.differentiable_loss(lg.model, lg.guide, lg.x))
    pyro.set_rng_seed(1)
    b = lg.gradient(elbo.differentiable_loss(lg.model, lg.guide, lg.x))
    assert torch.allclose(a[: P * D], b[: P * D])  # same draws: same gradient of the model
    assert not torch.allclose(a[P * D :], b[P * D :])


class NoPath(Normal):
    """A Gaussian without reparameterized draws."""

    has_rsample = False


@pytest.mark.slow
def test_score_function_handles_gaussian_without_rsample() -> None:
    lg = LinearGaussian(rows=1)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", NoPath(x @ lg.A.T, lg.log_sigma.exp()).to_event(1))

    run = ScoreFunction(num_particles=64).differentiable_loss
    sample = torch.stack([lg.gradient(run(lg.model, guide, lg.x)) for _ in range(500)])
    assert_mean(sample, lg.gradient(-lg.elbo().sum()))


def test_poutine_scale_scales_kl_of_elbo() -> None:
    lg = LinearGaussian()

    def annealed(program: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            def latent_only(site: Any) -> bool:
                return bool(site["name"] == "z")

            with ScaleSites(0.25, latent_only):
                program(x)

        return run

    model, guide = annealed(lg.model), annealed(lg.guide)
    m, Q = lg.x @ lg.A.T, (2 * lg.log_sigma).exp()
    kl = 0.5 * (m**2 + Q - 1 - Q.log()).sum(-1)
    expected = (lg.elbo() + 0.75 * kl).detach()
    for estimator in (ELBO(), ELBO(analytic_kl=False), StickingTheLanding()):
        particles = estimator.draw(model, guide, (lg.x.repeat(20_000, 1),), {})
        assert_mean(estimator.bound(particles).detach().reshape(20_000, -1), expected)


class ScaleSites(poutine.messenger.Messenger):
    """poutine.scale on chosen sites."""

    def __init__(self, scale: float, chosen: Callable[[Any], bool]) -> None:
        super().__init__()
        self.scale, self.chosen = scale, chosen

    def _pyro_sample(self, msg: Any) -> None:
        if self.chosen(msg):
            msg["scale"] = msg["scale"] * self.scale
