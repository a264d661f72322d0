"""CUBO, TVO and wake-sleep: bounds and measured bias."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, Delta, Normal
from torch import Tensor, nn

from ppl_lvm.estimators import (
    CUBO,
    IWAE,
    LeaveOneOut,
    Renyi,
    ReweightedWakeSleep,
    ThermodynamicELBO,
)
from ppl_lvm.estimators.thermodynamic import contrasts
from ppl_lvm.particles import Particles
from ppl_lvm.testing.expectations import double_precision, enumerate_cases, enumerate_expectation


@pytest.fixture
def float64() -> Iterator[None]:
    with double_precision():
        yield


class Discrete(nn.Module):
    """c ~ Categorical(3), x ~ Normal(theta_c, 1), one row."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.4, -0.8, 1.5]))
        self.phi = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))
        self.x = torch.tensor([1.0])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", 1, dim=-1):
            c = pyro.sample("c", Categorical(logits=torch.zeros(3)))
            pyro.sample("x", Normal(self.theta[c.long()], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 1, dim=-1):
            pyro.sample("c", Categorical(logits=self.phi))

    def log_joint(self) -> Tensor:
        return Normal(self.theta, 1.0).log_prob(self.x) - torch.tensor(3.0).log()

    def log_q(self) -> Tensor:
        return self.phi.log_softmax(0)

    def log_evidence(self) -> Tensor:
        return self.log_joint().logsumexp(0)

    def cubo(self, n: float) -> Tensor:
        return (self.log_q() + n * (self.log_joint() - self.log_q())).logsumexp(0) / n


def estimate(estimator: Any) -> tuple[Tensor, Tensor, Discrete]:
    """(expected gradient, gradient of the objective, pair)."""
    pair = Discrete()
    K = estimator.num_particles
    parameters = [pair.theta, pair.phi]
    cases = enumerate_cases(K, c=(3, (1,)))
    result = enumerate_expectation(estimator, pair.model, pair.guide, (pair.x,), parameters, cases)
    return result.gradient, result.target, pair


def gradient(of: Tensor, pair: Discrete) -> Tensor:
    grads = torch.autograd.grad(of, [pair.theta, pair.phi], allow_unused=True)
    return torch.cat([torch.zeros(3) if g is None else g for g in grads])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_exact_cubo_exceeds_evidence_and_increases_in_n(float64: None) -> None:
    pair = Discrete()
    with torch.no_grad():
        chain = [pair.log_evidence(), *(pair.cubo(n) for n in (1.5, 2.0, 4.0))]
    assert all(b > a for a, b in pairwise(chain))


@pytest.mark.parametrize("n", [1.5, 2.0])
def test_cubo_estimate_equals_renyi_and_converges_from_below(float64: None, n: float) -> None:
    pair = Discrete()
    pyro.set_rng_seed(0)
    particles = CUBO(num_particles=20_000, n=n).draw(pair.model, pair.guide, (pair.x,), {})
    many = CUBO(n=n).bound(particles)
    assert torch.allclose(many, pair.cubo(n), atol=0.02)
    assert torch.allclose(many, Renyi(alpha=1 - n).bound(particles))
    few = particles.log_w.reshape(4, 5_000)
    mean = CUBO(n=n).bound(Particles(few, torch.zeros_like(few))).mean()
    assert mean < pair.cubo(n) - 0.01


def test_cubo_gradient_has_direction_of_exact_cubo(float64: None) -> None:
    ours, _, pair = estimate(CUBO(num_particles=2))
    expected = gradient(pair.cubo(2.0), pair)
    cosine = float(ours @ expected / ours.norm() / expected.norm())
    assert cosine == pytest.approx(1.0, abs=1e-9)
    assert CUBO.is_upper_bound
    assert CUBO(num_particles=8).loss(pair.model, pair.guide, pair.x) == pytest.approx(
        float(pair.cubo(2.0).detach()), abs=1.0
    )


@pytest.mark.parametrize(("n", "message"), [(0.5, "n >= 1"), (float("nan"), "finite number")])
def test_cubo_rejects_order_below_one(n: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CUBO(n=n)


def test_thermodynamic_with_one_partition_is_leave_one_out(float64: None) -> None:
    ours, _, _ = estimate(ThermodynamicELBO(num_particles=2, num_partitions=1))
    expected, _, _ = estimate(LeaveOneOut(num_particles=2))
    assert torch.allclose(ours, expected, atol=1e-12)


def exact_tvo(pair: Discrete, betas: list[float]) -> Tensor:
    w = pair.log_joint() - pair.log_q()
    total = torch.zeros(())
    for b, next_b in pairwise(betas):
        path = (b * pair.log_joint() + (1 - b) * pair.log_q()).softmax(0)
        total = total + (next_b - b) * (path * w).sum()
    return total


def test_thermodynamic_bound_increases_with_partitions_to_evidence(float64: None) -> None:
    pair = Discrete()
    with torch.no_grad():
        bounds = [
            exact_tvo(pair, ThermodynamicELBO(num_partitions=T).betas) for T in (1, 2, 10, 100)
        ]
        assert all(b > a for a, b in pairwise([*bounds, pair.log_evidence()]))
        particles = ThermodynamicELBO(num_particles=50_000).draw(
            pair.model, pair.guide, (pair.x,), {}
        )
        estimator = ThermodynamicELBO(num_partitions=10)
        assert torch.allclose(estimator.bound(particles), bounds[2], atol=0.02)


@pytest.mark.slow
def test_thermodynamic_bias_falls_with_particles(float64: None) -> None:
    assert not ThermodynamicELBO.unbiased
    biases = []
    for K in (2, 6):
        ours, _, pair = estimate(ThermodynamicELBO(num_particles=K))
        betas = ThermodynamicELBO(num_particles=K).betas
        biases.append(relative(-ours, gradient(exact_tvo(pair, betas), pair)))
    assert biases[0] > biases[1] > 1e-3
    assert biases[1] < 0.2


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_thermodynamic_contrasts_equal_the_divided_covariance(beta: float) -> None:
    w = 2 * torch.randn(5, 3, dtype=torch.float64)
    v = (beta * w).softmax(0)
    expected = v * (w - (v * w).sum(0)) / (1 - (v**2).sum(0))
    assert torch.allclose(contrasts(beta, w), expected, rtol=1e-12)


def test_thermodynamic_contrasts_are_finite_if_one_particle_dominates() -> None:
    """The formula is 0 / 0; the limit of P has only the pair of the two largest weights."""
    w = torch.tensor([-3000.0, 0.0, -2000.0]).unsqueeze(1)
    assert contrasts(1.0, w).flatten().tolist() == [0.0, 1000.0, -1000.0]


@pytest.mark.parametrize("cls", [ReweightedWakeSleep, ThermodynamicELBO])
def test_point_estimates_have_a_gradient(cls: Any) -> None:
    point = torch.tensor(0.4, requires_grad=True)

    def model(x: Tensor) -> None:
        s = pyro.sample("s", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z + s, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("s", Delta(point))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.5 * x, 1.0))

    def gradient(estimator: Any) -> Tensor:
        loss = estimator.differentiable_loss(model, guide, torch.full((4_000,), 2.0))
        return torch.autograd.grad(loss, point)[0] / 4_000

    pyro.set_rng_seed(0)
    ours = gradient(cls(num_particles=20))
    assert torch.allclose(ours, gradient(IWAE(num_particles=20)), atol=0.1)
    assert ours.abs() > 0.3


@pytest.mark.slow
def test_wake_sleep_is_unbiased_for_model_and_biased_for_guide(float64: None) -> None:
    assert not ReweightedWakeSleep.unbiased
    biases = []
    for K in (2, 6):
        ours, target, pair = estimate(ReweightedWakeSleep(num_particles=K))
        assert torch.allclose(ours[:3], target[:3], atol=1e-9)  # theta: IWAE_K, exactly
        posterior = pair.log_joint().softmax(0).detach()
        wake = gradient((posterior * pair.log_q()).sum(), pair)
        biases.append(relative(-ours[3:], wake[3:]))
    assert biases[0] > biases[1] > 1e-3
