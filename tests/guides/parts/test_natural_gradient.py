"""Bounds of single rows against closed forms, and their ascent."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ppl_lvm.guides.parts import natural_gradient as ascent
from ppl_lvm.guides.parts.encoder_guide import supported_sites
from ppl_lvm.guides.parts.natural_gradient import LocalBound, ascend, points
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor
from ppl_lvm.models import PPCA
from ppl_lvm.models.parts.factors import linear_gaussian
from ppl_lvm.programs.signatures import signature


def _ppca(rows: int) -> tuple[PPCA, Tensor, MultivariateNormal, Tensor]:
    """A model, data, the exact posterior, and log p(x_n)."""
    model, x = PPCA(3, 5).double(), torch.randn(rows, 5).double()
    mean, L = linear_gaussian.posterior(model._theta(), x)
    exact = MultivariateNormal(mean.detach(), precision_matrix=(L @ L.mT).detach())
    return model, x, exact, model.log_evidence(x).detach()


def _bound(model: Any, *batch: Tensor, draws: int | None = None) -> LocalBound:
    model_signature = signature(model, *batch)
    factors = [
        TransformedFactor(site, model_signature, DiagonalFamily())
        for site in supported_sites(model_signature, "this")
    ]
    return LocalBound(model, model_signature, factors, batch, draws, "this")


def _closed_form(lam: Tensor, exact: MultivariateNormal, log_p: Tensor) -> Tensor:
    """log p(x) - KL(q ‖ p(z | x))."""
    q = MultivariateNormal(lam[:, :3], covariance_matrix=(2 * lam[:, 3:]).exp().diag_embed())
    return log_p - kl_divergence(q, exact)


@pytest.mark.parametrize(("count", "size"), [(8, 3), (6, 3), (4, 5)])
def test_points_have_the_moments_of_a_normal(count: int, size: int) -> None:
    eps = points(count, size)
    zero, one = torch.zeros(size).double(), torch.ones(size).double()
    torch.testing.assert_close(eps.mean(0), zero)
    torch.testing.assert_close(eps.square().mean(0), one)
    if count >= 2 * size:
        torch.testing.assert_close(eps.mT @ eps / count, torch.eye(size).double())


def test_local_bound_is_the_elbo_where_log_p_is_quadratic() -> None:
    model, x, exact, log_p = _ppca(7)
    lam = torch.randn(7, 6).double()
    value = _bound(model, x)(lam, x)
    torch.testing.assert_close(value.detach(), _closed_form(lam, exact, log_p))
    # The wrong twin: points whose covariance is not I.
    wrong = _bound(model, x, draws=2)(lam, x)
    assert (wrong - _closed_form(lam, exact, log_p)).abs().max() > 0.1


def test_ascent_reaches_the_optimum_and_no_row_falls() -> None:
    """Of a diagonal q against N(m, Λ⁻¹): μ = m, σ_i² = 1 / Λ_ii."""
    model, x, exact, log_p = _ppca(20)
    bound = _bound(model, x)
    lam, alpha = 2 * torch.randn(20, 6).double(), torch.ones(20, 1).double()
    before = _closed_form(lam, exact, log_p)
    for _ in range(40):
        lam, alpha = ascend(bound, lam, alpha, 1, x)
        now = _closed_form(lam, exact, log_p)
        assert (now >= before - 1e-12).all()
        before = now
    variance = 1 / exact.precision_matrix.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(lam[:, :3], exact.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close((2 * lam[:, 3:]).exp(), variance, atol=1e-6, rtol=0)


def test_one_step_reaches_the_optimum_without_correlations() -> None:
    model, x = PPCA(1, 5).double(), torch.randn(4, 5).double()
    mean, L = linear_gaussian.posterior(model._theta(), x)
    start = torch.tensor([[-100.0, 4.0]]).double().expand(4, 2)
    lam, _ = ascend(_bound(model, x), start, torch.ones(4, 1).double(), 1, x)
    torch.testing.assert_close(lam[:, :1], mean.detach())
    torch.testing.assert_close(lam[:, 1:], -L[:, 0].log().detach())


def test_ascent_of_a_row_does_not_depend_on_other_rows() -> None:
    model, x, *_ = _ppca(6)
    start, alpha = torch.randn(6, 6).double(), torch.ones(6, 1).double()
    all_rows, _ = ascend(_bound(model, x), start, alpha, 8, x)
    subset, _ = ascend(_bound(model, x), start[4:], alpha[4:], 8, x[4:])
    torch.testing.assert_close(all_rows[4:], subset)


def test_local_bound_with_supports_plates_and_enumerated_sites() -> None:
    """Against a sum over the enumerated values and a change of variables by hand."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            with pyro.plate("parts", 2, dim=-2):
                part = pyro.sample("part", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(k + rate + part.sum((0, -1)), 1.0), obs=x)

    torch.set_default_dtype(torch.float64)
    x = torch.randn(3)
    bound, lam = _bound(model, x, draws=10), torch.randn(3, 10).double()
    eps = points(10, 5)  # of rate, then of both parts
    loc = torch.cat([lam[:, :1], lam[:, 2:4], lam[:, 6:8]], -1)
    log_scale = torch.cat([lam[:, 1:2], lam[:, 4:6], lam[:, 8:]], -1)
    u = loc + log_scale.exp() * eps[:, None, :]  # (K, 3, 5)
    rate, total = u[..., 0].exp(), u[..., 1:].sum(-1)
    values = torch.tensor([0.0, 1.0]).double()[:, None, None]
    joint = dist.Bernoulli(0.3).log_prob(values) + Normal(values + rate + total, 1.0).log_prob(x)
    prior = (
        dist.Gamma(2.0, 1.0).log_prob(rate) + u[..., 0] + Normal(0, 1).log_prob(u[..., 1:]).sum(-1)
    )
    entropy = Normal(loc, log_scale.exp()).entropy().sum(-1)
    exact = (joint.logsumexp(0) + prior).mean(0) + entropy
    torch.testing.assert_close(bound(lam, x), exact)


def test_local_bound_runs_the_model_in_evaluation_mode() -> None:
    model, x, *_ = _ppca(4)
    model.noise_layer = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(5))
    modes = []
    model.noise_layer.register_forward_pre_hook(lambda m, args: modes.append(m.training))
    forward = type(model).forward

    class Noisy(PPCA):
        def forward(self, x: Tensor) -> None:
            self.noise_layer(x.float())
            forward(self, x)

    model.__class__ = Noisy
    bound = _bound(model, x)
    before, modes[:] = model.noise_layer[1].running_mean.clone(), []
    bound(torch.zeros(4, 6).double(), x)
    assert modes == [False]
    assert model.noise_layer.training
    assert torch.equal(model.noise_layer[1].running_mean, before)


def test_local_bound_refuses_dependent_rows_and_odd_numbers_of_draws() -> None:
    def chain(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x.sum())

    with pytest.raises(
        ValueError, match="rows depend on each other: site 'x' outside plate 'data'"
    ):
        _bound(chain, torch.randn(3))
    with pytest.raises(ValueError, match=r"draws=3. Use an even number"):
        _bound(_ppca(3)[0], _ppca(3)[1], draws=3)


def test_ascent_rejects_steps_along_the_negative_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, *_ = _ppca(5)
    step = LocalBound.step
    backwards = lambda self, lam, slope, alpha: step(self, lam, -slope, alpha)  # noqa: E731
    monkeypatch.setattr(ascent.LocalBound, "step", backwards)
    lam, alpha = torch.zeros(5, 6).double(), torch.ones(5, 1).double()
    after, _ = ascend(_bound(model, x), lam, alpha, 30, x)
    assert torch.equal(after, lam)  # each rejected, since none raises L
