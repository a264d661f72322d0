"""Masked, straight-through and mixed pairs: right, or rejected."""

import math
from typing import Any

import pyro
import pytest
import torch
from estimator_rejections import X, rejections
from pyro import poutine
from pyro.distributions import (
    Bernoulli,
    ExpandedDistribution,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedBernoulli,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
)
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm.particles import analyze_for_particles, log_weights

pytestmark = pytest.mark.filterwarnings("ignore:Particles run one by one")


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (RelaxedBernoulli, RelaxedBernoulliStraightThrough),
        (RelaxedBernoulliStraightThrough, RelaxedBernoulliStraightThrough),
    ],
)
def test_straight_through_bernoulli_in_the_guide_is_rejected_by_every_estimator(
    prior: Any, posterior: Any
) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior(torch.tensor(0.5), logits=torch.zeros(len(x))))
            pyro.sample("x", Normal(z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", posterior(torch.tensor(0.5), logits=torch.zeros(len(x))))

    with pyro.validation_enabled(False):
        reasons = rejections(model, guide)
    assert set(reasons) == set(estimators.__all__)
    assert all("'z' (RelaxedBernoulliStraightThrough)" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    "distribution",
    [
        RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), torch.ones(3)),
        OneHotCategoricalStraightThrough(torch.ones(3)),
    ],
)
def test_straight_through_one_hot_in_the_guide_is_rejected(distribution: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", distribution)
            pyro.sample("x", Normal(z[..., 0], 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", distribution)

    with pyro.validation_enabled(False):
        assert set(rejections(model, guide)) == set(estimators.__all__)


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (Bernoulli(0.5), RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.5))),
        (Normal(0.0, 1.0), Bernoulli(0.5)),
    ],
)
def test_site_that_is_discrete_in_one_program_only_is_rejected(prior: Any, posterior: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", Normal(z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", posterior)

    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"'z' is .* in the model"):
        log_weights(model, guide, X)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["inside", "outside", "handler", "expanded"])
@pytest.mark.parametrize(
    "name", [n for n in estimators.__all__ if getattr(estimators, n).target == "ELBO"]
)
def test_mask_in_the_guide_only_leaves_the_gradient_of_the_masked_objective(
    float64: None, name: str, wrap: str
) -> None:
    cls = getattr(estimators, name)
    if cls.requires == "reparameterized" or not cls.unbiased:
        pytest.skip("a discrete guide, without bias")
    torch.manual_seed(1)
    phi = torch.tensor([0.7, -0.4], requires_grad=True)
    weight = torch.tensor([1.3, -2.0])
    keep = torch.tensor([True, False]) if wrap == "inside" else torch.tensor(False)
    R, x = 20_000, torch.tensor(0.8)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(torch.full((2,), 0.3)).to_event(1))
            pyro.sample("x", Normal((z * weight).sum(-1) + 2 * z.prod(-1), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        q: Any = Bernoulli(logits=phi.expand(len(x), 2))
        if wrap == "expanded":
            q = ExpandedDistribution(Bernoulli(logits=phi), torch.Size([len(x), 2]))
        q = q.mask(keep).to_event(1) if wrap == "inside" else q.to_event(1)
        q = q.mask(keep) if wrap in ("outside", "expanded") else q
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=wrap != "handler"):
            pyro.sample("z", q)

    def elbo() -> Tensor:
        total = torch.zeros(())
        for bits in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
            z = torch.tensor(bits)
            log_q = Bernoulli(logits=phi).log_prob(z)
            log_p = Bernoulli(torch.full((2,), 0.3)).log_prob(z).sum()
            log_p = log_p + Normal((z * weight).sum() + 2 * z.prod(), 0.7).log_prob(x)
            total = total + log_q.sum().exp() * (log_p - (log_q * keep).sum())
        return total

    (exact,) = torch.autograd.grad(elbo(), phi)
    estimator = cls().double().eval()
    draws = []
    for _ in range(10):
        loss = estimator.differentiable_loss(model, guide, x.expand(R)) / R
        draws.append(-torch.autograd.grad(loss, phi)[0])
    sample = torch.stack(draws)
    error = sample.std(0) / len(draws) ** 0.5
    assert ((sample.mean(0) - exact).abs() < 5 * error + 1e-9).all()


def test_closed_form_of_the_divergence_is_not_used_for_other_masks() -> None:
    keep = {name: torch.arange(6) % step == 0 for name, step in (("p", 2), ("q", 3))}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(len(x)), 1.0).mask(keep["p"]))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(torch.full((len(x),), 0.5), 0.6).mask(keep["q"]))

    torch.manual_seed(0)
    x = torch.linspace(-1.0, 1.0, 6)
    draws = torch.tensor([-estimators.ELBO(500).loss(model, guide, x) for _ in range(20)])
    second = 0.5**2 + 0.6**2  # E z²
    log_p = (-0.5 * math.log(2 * math.pi) - 0.5 * second) * keep["p"].sum()
    log_q = (-0.5 * math.log(2 * math.pi) - math.log(0.6) - 0.5) * keep["q"].sum()
    likelihood = (-0.5 * math.log(2 * math.pi) - 0.5 * ((x - 0.5) ** 2 + 0.36)).sum()
    exact = float(log_p - log_q + likelihood)
    assert draws.mean().item() == pytest.approx(exact, abs=5 * draws.std().item() / 20**0.5)


def test_structure_names_straight_through_sites() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", OneHotCategoricalStraightThrough(torch.ones(3)))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", OneHotCategorical(torch.ones(3)))
            pyro.sample("x", Normal(z[..., 0], 1.0), obs=x)

    structure = analyze_for_particles(model, guide, (X,), {}, 1)
    assert structure.straight_through == ("z",)
