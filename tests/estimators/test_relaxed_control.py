"""REBAR and RELAX: exact expectations by quadrature over uniforms."""

import math
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.infer import SVI
from torch import Tensor, nn

from ppl_lvm.estimators import REBAR, RELAX, ScoreFunction
from ppl_lvm.estimators.parts import control_variate, relaxed_bernoulli

PHI = 0.6


class Bits(nn.Module):
    """D bits per row; rows differ in x only."""

    def __init__(self, bits: int = 1) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(1.0, -0.5, bits))
        self.phi = nn.Parameter(torch.full((bits,), PHI))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(torch.full_like(self.phi, 0.4)).to_event(1))
            loc = (z * self.theta).sum(-1) + z.prod(-1) ** 2
            pyro.sample("x", Normal(loc, 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.phi.expand(len(x), -1)).to_event(1))

    def gradient(self, value: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(value, [self.theta, self.phi], retain_graph=True))


def elbo(pair: Bits, x: Tensor) -> Tensor:
    """Exact ELBO of one row."""
    total = torch.zeros(())
    for index in range(2 ** len(pair.phi)):
        z = torch.tensor([float(index >> d & 1) for d in range(len(pair.phi))])
        log_q = Bernoulli(logits=pair.phi).log_prob(z).sum()
        log_p = Bernoulli(torch.full_like(pair.phi, 0.4)).log_prob(z).sum()
        log_p = log_p + Normal((z * pair.theta).sum() + z.prod() ** 2, 0.7).log_prob(x)
        total = total + log_q.exp() * (log_p - log_q)
    return total


def grid(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(u, v, weight): Gauss-Legendre on both sides of the sign's threshold.

    Nodes are dense at the ends, where logits diverge.
    """
    t, weight = np.polynomial.legendre.leggauss(nodes)
    t, weight = (t + 1) / 2, weight / 2
    at, weight = t**3 * (10 - 15 * t + 6 * t**2), weight * 30 * t**2 * (1 - t) ** 2
    threshold = 1 - 1 / (1 + math.exp(-PHI))
    u = np.concatenate([threshold * at, threshold + (1 - threshold) * at])
    wu = np.concatenate([threshold * weight, (1 - threshold) * weight])
    U, V = np.meshgrid(u, at, indexing="ij")
    return tuple(torch.tensor(a.reshape(-1)) for a in (U, V, np.outer(wu, weight)))  # type: ignore[return-value]


def expected(estimator: Any, pair: Bits, monkeypatch: Any, nodes: int = 80) -> Tensor:
    u, v, weight = grid(nodes)

    def fixed_uniforms(like: Tensor) -> tuple[Tensor, Tensor]:
        return u.reshape(like.shape), v.reshape(like.shape)

    x = torch.full((len(u),), 0.8)
    estimator.analyze(pair.model, pair.guide, (x,), {})
    monkeypatch.setattr(relaxed_bernoulli, "uniforms", fixed_uniforms)
    particles = estimator.draw(pair.model, pair.guide, (x,), {})
    return pair.gradient((weight * estimator.surrogate(particles)).sum())


ESTIMATORS: list[Any] = [REBAR(), REBAR(temperature=0.8), RELAX(), RELAX(relax_model=False)]


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("number", range(len(ESTIMATORS)))
def test_relaxed_control_expected_gradient_is_that_of_the_elbo(
    float64: None, monkeypatch: Any, number: int, eta: float
) -> None:
    estimator = ESTIMATORS[number].double().eval()
    estimator.eta.data.fill_(eta)
    pair = Bits()
    ours = expected(estimator, pair, monkeypatch)
    target = pair.gradient(elbo(pair, torch.tensor(0.8)))
    assert (ours - target).abs().max() < 1e-8


def test_rebar_without_derivative_of_conditional_draw_is_biased(
    float64: None, monkeypatch: Any
) -> None:
    original = relaxed_bernoulli._draw

    def unconditional(phi: Tensor) -> dict[str, Tensor]:
        draws = original(phi)
        draws["dz2"] = torch.ones_like(draws["dz2"])  # ∂z'/∂φ without the dependence of u' on φ
        return draws

    monkeypatch.setattr(relaxed_bernoulli, "_draw", unconditional)
    pair = Bits()
    ours = expected(REBAR().double().eval(), pair, monkeypatch)
    assert (ours - pair.gradient(elbo(pair, torch.tensor(0.8)))).abs().max() > 1e-2


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("cls", [REBAR, RELAX])
def test_relaxed_control_mean_gradient_with_several_bits_and_particles(
    float64: None, cls: Any, vectorize: bool
) -> None:
    pair = Bits(3)
    estimator = cls(num_particles=2, vectorize_particles=vectorize).double().eval()
    x, copies, n = torch.tensor([0.8, -0.3]), 25, 40  # 1,000 draws, 25 at a time
    run = partial(estimator.differentiable_loss, pair.model, pair.guide, x.repeat(copies))
    sample = torch.stack([pair.gradient(run()) / copies for _ in range(n)])
    target = -pair.gradient(elbo(pair, x[0]) + elbo(pair, x[1]))
    assert ((sample.mean(0) - target).abs() < 5 * sample.std(0) / math.sqrt(n)).all()


@pytest.mark.slow
@pytest.mark.parametrize("cls", [REBAR, RELAX])
def test_relaxed_control_parameters_learn_and_lower_variance(cls: Any) -> None:
    pair = Bits(3)
    estimator = cls()
    x = torch.linspace(-1.0, 1.0, 16)

    def spread(estimator: Any) -> float:
        run = estimator.differentiable_loss
        sample = [pair.gradient(run(pair.model, pair.guide, x)) for _ in range(200)]
        return float(torch.stack(sample)[:, 3:].var(0).sum())

    frozen = [p.requires_grad_(False) for p in pair.parameters()]
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), loss=estimator)
    svi.step(x)
    before = [p.detach().clone() for p in estimator.parameters()]
    for _ in range(60):
        svi.step(x)
    changed = [not torch.equal(a, b) for a, b in zip(before, estimator.parameters(), strict=True)]
    assert sum(changed) >= 2
    for p in frozen:
        p.requires_grad_(True)
    estimator.eval()
    assert spread(estimator) < 0.5 * spread(ScoreFunction(num_particles=1))


@pytest.mark.parametrize("cls", [REBAR, RELAX])
def test_relaxed_control_rejects_zero_temperature(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"temperature=0\.0 is too small"):
        cls(temperature=0.0)


def test_variance_gradient_reaches_control_variate_only(float64: None) -> None:
    pair, x = Bits(2), torch.tensor([0.1, 0.9])
    estimator = REBAR().double()
    particles = estimator.draw(pair.model, pair.guide, (x,), {})
    relaxed = particles.drawing
    g = torch.ones(1, 2, 2, requires_grad=True)
    S = control_variate.surrogate(particles, relaxed, g, relaxed.draws()["phi"], [])
    assert torch.autograd.grad(S.sum(), g, allow_unused=True)[0] is None
