"""Gumbel-softmax and straight-through: values, gradients, declared bias."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal, OneHotCategorical, RelaxedBernoulli
from torch import Tensor, nn

from ppl_lvm.estimators import GumbelSoftmax, StraightThrough
from ppl_lvm.programs.minibatch import ScaleDataPlate


class OneHot(nn.Module):
    """One of three clusters; `curved` makes log p(x, c) nonlinear between corners."""

    def __init__(self, curved: bool = True) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([0.5, -0.4, 0.1]))
        self.theta = nn.Parameter(torch.tensor([1.0, -1.0, 2.0]))
        self.curved = curved
        self.x = torch.tensor([1.2])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", Normal((c * self.theta).sum(-1), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", OneHotCategorical(logits=self.phi))

    def elbo(self) -> Tensor:
        log_q = self.phi.log_softmax(0)
        log_p = Normal(self.theta, 1.0).log_prob(self.x) - math.log(3)
        return (log_q.exp() * (log_p - log_q)).sum()

    def bias(self, estimator: Any, rows: int = 60_000) -> float:
        """Relative bias of φ's gradient, from many equal rows."""
        x = self.x.expand(rows)
        loss = estimator.differentiable_loss(self.model, self.guide, x) / rows
        ours = torch.autograd.grad(loss, self.phi)[0]
        exact = torch.autograd.grad(-self.elbo(), self.phi)[0]
        return float((ours - exact).norm() / exact.norm())


class TwoBits(nn.Module):
    """log p(x | z) is linear in every bit."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([0.5, -0.4]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
            pyro.factor("x", z.prod(-1) + x * z[..., 0])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.phi.expand(len(x), 2)).to_event(1))

    def elbo(self, x: Tensor) -> Tensor:
        p = self.phi.sigmoid()
        prior = torch.tensor([0.3, 0.6])
        kl = p * (p / prior).log() + (1 - p) * ((1 - p) / (1 - prior)).log()
        return (p.prod() + x * p[0] - kl.sum()).sum()


def test_gumbel_softmax_uses_concrete_densities_in_guide_and_model() -> None:
    pair = TwoBits()
    estimator = GumbelSoftmax(num_particles=3, temperature=0.7)
    x = torch.tensor([0.3, -0.1])
    particles = estimator.draw(pair.model, pair.guide, (x,), {})
    y = particles.site_draws["z"].value
    assert y.requires_grad
    assert ((y > 0) & (y < 1)).all()
    tau = torch.tensor(0.7)
    prior = RelaxedBernoulli(tau, probs=torch.tensor([0.3, 0.6])).log_prob(y).sum(-1)
    q = RelaxedBernoulli(tau, logits=pair.phi).log_prob(y).sum(-1)
    expected = prior - q + y.prod(-1) + x * y[..., 0]
    assert torch.allclose(particles.log_w, expected, atol=1e-5)
    assert particles.score is None


def test_gumbel_softmax_bias_falls_with_temperature() -> None:
    assert not GumbelSoftmax.unbiased
    assert not GumbelSoftmax().is_bound
    pair = OneHot()
    hot, warm = (pair.bias(GumbelSoftmax(temperature=t)) for t in (1.0, 0.3))
    assert hot > 0.3
    assert hot > warm + 0.1


def test_straight_through_value_is_the_elbo(float64: None) -> None:
    pair = TwoBits()
    x = torch.tensor([0.4]).expand(50_000)
    for tau in (None, 0.5):
        loss = StraightThrough(temperature=tau).loss(pair.model, pair.guide, x) / 50_000
        assert loss == pytest.approx(-float(pair.elbo(x[:1]).detach()), abs=0.02)


def test_straight_through_mean_gradient_is_exact_for_linear_bits(float64: None) -> None:
    pair = TwoBits()
    n = 40_000
    x = torch.tensor([0.4]).expand(n)
    estimator = StraightThrough(num_particles=2)
    particles = estimator.draw(pair.model, pair.guide, (x,), {})
    (ours,) = torch.autograd.grad(estimator.surrogate(particles).mean(), pair.phi)
    (target,) = torch.autograd.grad(pair.elbo(x[:1]), pair.phi)
    assert ((ours - target).abs() < 5 / math.sqrt(n)).all()


def test_straight_through_is_biased_at_every_temperature() -> None:
    assert not StraightThrough.unbiased
    pair = OneHot()
    for tau in (None, 1.0, 0.3):
        assert pair.bias(StraightThrough(temperature=tau)) > 0.15


@pytest.mark.parametrize("cls", [GumbelSoftmax, StraightThrough])
def test_relaxed_estimator_scales_minibatch_with_and_without_loop(cls: Any) -> None:
    pair = TwoBits()
    x = torch.tensor([0.4, -1.0])
    for vectorize in (True, False):
        estimator = cls(num_particles=2, vectorize_particles=vectorize)
        scaled = ScaleDataPlate(8)
        particles = estimator.draw(scaled(pair.model), scaled(pair.guide), (x,), {})
        assert particles.log_w.shape == (2, 2)
        assert particles.scale == 4
        (grad,) = torch.autograd.grad(estimator.surrogate(particles).sum(), pair.phi)
        assert grad.abs().min() > 0


@pytest.mark.parametrize("cls", [GumbelSoftmax, StraightThrough])
def test_relaxed_estimator_rejects_categorical_site(cls: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", Categorical(torch.ones(3) / 3))

    with pytest.raises(ValueError, match=r"'c' is Categorical. Write it one-hot, or use Leave"):
        cls().loss(model, model, torch.zeros(2))
    with pytest.raises(ValueError, match=r"temperature=0\.0 is too small"):
        cls(temperature=0.0)
