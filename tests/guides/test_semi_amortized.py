"""SemiAmortized: monotone refinement, exact limit, and exact gradients."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_lvm.checks import check
from ppl_lvm.guides import SemiAmortized
from ppl_lvm.models import PPCA
from ppl_lvm.models.parts.factors import linear_gaussian


def _orthogonal(rows: int) -> tuple[PPCA, Tensor, Normal]:
    """PPCA with orthogonal W: its posterior is diagonal."""
    model, x = PPCA(2, 4).double(), torch.randn(rows, 4).double()
    with torch.no_grad():
        model.W = torch.linalg.qr(model.W).Q * torch.tensor([1.0, 2.0]).double()
    mean, L = linear_gaussian.posterior(model._theta(), x)
    variance = torch.linalg.inv(L @ L.mT).diagonal(dim1=-2, dim2=-1)
    return model, x, Normal(mean.detach(), variance.sqrt().detach())


def _q(guide: SemiAmortized, x: Tensor) -> Normal:
    fn = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    return Normal(fn.mean, fn.stddev)


def test_semi_amortized_converges_to_the_posterior_as_steps_grow() -> None:
    model, x, exact = _orthogonal(12)
    guide = SemiAmortized(model, x)
    gaps = []
    for steps in (0, 1, 2, 4, 8, 16):
        guide.steps = steps
        with torch.no_grad():
            gaps.append(kl_divergence(_q(guide, x), exact).sum(-1))  # of every row
    for before, after in pairwise(gaps):
        assert (after <= before + 1e-12).all()  # no row's bound is below the encoder's
    assert gaps[0].min() > 0.01
    assert gaps[-1].max() < 1e-6


def _loss(guide: SemiAmortized, model: PPCA, x: Tensor, exact: Normal) -> Tensor:
    """-Σ_n [log p(x_n) - KL(q ‖ p(z | x_n))] in closed form."""
    mean, L = linear_gaussian.posterior(model._theta(), x)
    variance = torch.linalg.inv(L @ L.mT).diagonal(dim1=-2, dim2=-1)
    posterior = Normal(mean, variance.sqrt())
    return (kl_divergence(_q(guide, x), posterior).sum(-1) - model.log_evidence(x)).sum()


@pytest.mark.parametrize("through", [True, False])
def test_gradient_passes_through_the_steps_unless_disabled(through: bool) -> None:
    """Against a difference quotient; without `through` it must fail that."""
    model, x, exact = _orthogonal(3)
    guide = SemiAmortized(model, x, steps=1, hidden=(), through=through)
    weight = guide.encoder.net.layers[0].weight
    errors = []
    for parameter, (i, j) in ((weight, (0, 1)), (weight, (2, 0))):
        guide.zero_grad()
        _loss(guide, model, x, exact).backward()
        assert parameter.grad is not None
        assert abs(float(parameter.grad[i, j])) > 1e-3
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[i, j] += step
                values.append(_loss(guide, model, x, exact))
                parameter[i, j] -= step
        errors.append(abs(float((values[0] - values[1]) / 2e-5 - parameter.grad[i, j])))
    assert (max(errors) < 1e-6) == through


def test_semi_amortized_is_a_deterministic_function_of_the_rows() -> None:
    """Its parameters contain no noise, and a row's parameters depend on no other row."""
    model, x, _ = _orthogonal(5)
    guide = SemiAmortized(model, x)
    first, second = _q(guide, x), _q(guide, x)
    assert torch.equal(first.mean, second.mean)
    flipped = _q(guide, x.flip(0))
    torch.testing.assert_close(flipped.mean.flip(0), first.mean)


def test_plain_svi_trains_model_and_encoder_of_semi_amortized() -> None:
    pyro.set_rng_seed(0)
    x = torch.randn(30, 4)
    model = PPCA(2, 4)
    guide = SemiAmortized(model, x, steps=2)
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert set(pyro.get_param_store().keys()) >= {"W", "mu", "encoder$$$net.layers.0.weight"}


@pytest.mark.slow
def test_semi_amortized_leaves_enumerated_sites_to_the_model() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 3 * k, 1.0), obs=x)

    x = torch.randn(6)
    guide = SemiAmortized(model, x)
    assert len(check(model, guide, x)) == 0
    assert TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x) > 0


@pytest.mark.slow
def test_semi_amortized_adds_a_guide_for_global_latents() -> None:
    """λ is fitted at the center of q(w), as if w were known."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(6)
    guide = SemiAmortized(model, x, steps=10)
    assert len(check(model, guide, x)) == 0
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    center = guide.shared.w_loc  # type: ignore[union-attr]
    torch.testing.assert_close(q.mean, (x + center) / 2, atol=1e-4, rtol=0)
    q.mean.sum().backward()  # through the steps, to the global latent
    assert guide.shared.w_loc_unconstrained.grad == pytest.approx(3.0, abs=1e-3)  # type: ignore[union-attr]


def test_semi_amortized_refuses_global_latents_alone_and_negative_steps() -> None:
    def shared(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0).expand([len(x)]), obs=x)

    with pytest.raises(ValueError, match="SemiAmortized: there is no continuous latent to serve"):
        SemiAmortized(shared, torch.randn(3))
    with pytest.raises(ValueError, match="steps=-1 is too small"):
        SemiAmortized(shared, torch.randn(3), steps=-1)
