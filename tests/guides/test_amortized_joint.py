"""AmortizedJoint against Bayes' rule: discrete and continuous sites."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedJoint
from ppl_lvm.particles import log_weights

CENTERS = torch.tensor([-3.0, 0.0, 2.0])


def _mixed(x: Tensor) -> None:
    """k of three, z ~ N(c_k, 1), x ~ N(z, 1): given x, z depends on k."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        z = pyro.sample("z", dist.Normal(CENTERS[k], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _at(guide: AmortizedJoint, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """q(k | x), and the mean and scale of q(z | x, k)."""
    fixed = poutine.condition(guide, data={"k": torch.full((len(x),), k)})
    nodes = poutine.trace(fixed).get_trace(x).nodes
    z = nodes["z"]["fn"]
    return nodes["k"]["fn"].probs, z.mean, z.stddev


def _exact_elbo(guide: AmortizedJoint, x: Tensor) -> Tensor:
    """Σ_n Σ_k q(k) [log p(k) - log q(k) + E_q(z|k) log p(x, z | k) + H(z | k)], in closed form."""
    total = torch.zeros(())
    for k in range(3):
        probs, mean, scale = _at(guide, x, k)
        log_joint = sum(
            dist.Normal(0.0, 1.0).log_prob(gap) - scale.square() / 2
            for gap in (mean - CENTERS[k], mean - x)
        )
        entropy = dist.Normal(mean, scale).entropy()
        prior = -torch.tensor(3.0).log() - probs[:, k].log()
        total = total + (probs[:, k] * (prior + log_joint + entropy)).sum()
    return total


def test_amortized_joint_fits_the_posterior_of_every_component() -> None:
    """p(z | x, k) = N((c_k + x) / 2, 1/2), p(k | x) ∝ N(x; c_k, 2): the bound's maximum."""
    x = torch.linspace(-4, 3, 15)
    guide = AmortizedJoint(_mixed, x, head_hidden=(), features=8)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        (-_exact_elbo(guide, x)).backward()
        optimizer.step()
    exact = dist.Normal(CENTERS, 2**0.5).log_prob(x[:, None]).softmax(-1)
    for k in range(3):
        probs, mean, scale = (t.detach() for t in _at(guide, x, k))
        torch.testing.assert_close(probs, exact, atol=0.05, rtol=0)
        likely = exact[:, k] > 0.1
        error = (mean - (CENTERS[k] + x) / 2)[likely]
        assert error.abs().max() < 0.15
        assert (scale - 0.5**0.5)[likely].abs().max() < 0.1
    # Impossible for independent sites: their mean of z is the same for every k.
    assert (_at(guide, x, 0)[1] - _at(guide, x, 2)[1]).abs().min() > 1.0


def test_enumerated_guide_has_the_exact_bound() -> None:
    x = torch.randn(5)
    guide = AmortizedJoint(_mixed, x, enumerate="parallel")
    objective = TraceEnum_ELBO(4000, max_plate_nesting=1, vectorize_particles=True)
    with torch.no_grad():
        estimates = torch.tensor([objective.loss(_mixed, guide, x) for _ in range(6)])
    error = estimates.std() / 6**0.5
    assert abs(-estimates.mean() - _exact_elbo(guide, x).detach()) < 5 * error


def test_sampled_guide_has_the_exact_bound() -> None:
    x = torch.randn(5)
    guide = AmortizedJoint(_mixed, x)
    with torch.no_grad():
        log_w = log_weights(_mixed, guide, x, num_particles=20_000).sum(-1)
    error = log_w.std() / len(log_w) ** 0.5
    assert abs(log_w.mean() - _exact_elbo(guide, x).detach()) < 5 * error


def _kinds(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        bits = pyro.sample("bits", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        rate = pyro.sample("rate", dist.Gamma(1 + bits.sum(-1), 1.0))
        one = pyro.sample("one", dist.OneHotCategorical(torch.ones(4)))
        pi = pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
        table = pyro.sample("table", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        loc = rate + one[..., 0] + pi[..., 0] + table.sum((-1, -2))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@pytest.mark.slow
def test_amortized_joint_passes_check_with_every_factor() -> None:
    x = torch.rand(6, 5).round()
    factors = {"rate": "spline", "pi": "low_rank", "table": "affine"}
    pairs = [
        (_kinds, AmortizedJoint(_kinds, x[:, 0], factors=factors), x[:, 0]),
        (_kinds, AmortizedJoint(_kinds, x[:, 0], factors={"pi": "multivariate"}), x[:, 0]),
        (_mixed, AmortizedJoint(_mixed, x[:, 0]), x[:, 0]),
    ]
    for model, guide, batch in pairs:
        issues = check(model, guide, batch)
        assert issues.ok, str(issues)
        assert "warning" not in str(issues), str(issues)


def test_amortized_joint_fits_by_address_and_encodes_marginal_means() -> None:
    """q(z | x) has no closed-form mean; the mean given one draw of k would vary between calls."""
    x = torch.randn(40)
    run = fit(_mixed, "ppl_lvm.guides:AmortizedJoint", x, num_steps=10)
    codes = run.encode(x)
    assert codes["k"].shape == (40, 3)
    guide: Any = run.guide
    with torch.no_grad():
        probs = _at(guide, x, 0)[0].mT  # (3, 40)
        conditional = torch.stack([_at(guide, x, k)[1] for k in range(3)])
    mean = (probs * conditional).sum(0)
    spread = (probs * (conditional - mean).square()).sum(0).sqrt()
    assert ((codes["z"] - mean).abs() < 5 * spread / 64**0.5 + 1e-5).all()
    assert "posterior" in run.to_arviz(x[:5], num_samples=4)


def test_amortized_joint_refuses_unsupported_models_and_factors() -> None:
    def inner(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, -1))

    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            n = pyro.sample("n", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    x = torch.randn(3)
    with pytest.raises(ValueError, match=r"'z' stands in 'data', 'parts'. Use AmortizedNormal"):
        AmortizedJoint(inner, x)
    with pytest.raises(ValueError, match=r"serves Bernoulli, .* but 'n' is Poisson"):
        AmortizedJoint(counts, x)
    with pytest.raises(
        ValueError, match=r"factors names 'k', but the continuous sites are \['z'\]"
    ):
        AmortizedJoint(_mixed, x, factors={"k": "normal"})
    with pytest.raises(
        ValueError, match=r"unknown family 'flow' of 'z'. Use one of normal, multivariate"
    ):
        AmortizedJoint(_mixed, x, factors={"z": "flow"})
    with pytest.raises(ValueError, match="AmortizedJoint: it serves vectors, but 'z'"):
        AmortizedJoint(_mixed, x, factors={"z": "low_rank"})
