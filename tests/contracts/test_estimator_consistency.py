"""CUBO, TVO and wake-sleep: what they bound, and how biased they say they are."""

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


class Discrete(nn.Module):
    """c ~ Categorical(3), x ~ Normal(theta_c, 1), one datum."""

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


def estimate(exact: Any, estimator: Any) -> tuple[Tensor, Tensor, Discrete]:
    pair = Discrete()
    K = estimator.num_particles
    parameters = [pair.theta, pair.phi]
    cases = exact.cases(K, c=(3, (1,)))
    ours, target = exact.gradients(estimator, pair.model, pair.guide, (pair.x,), parameters, cases)
    return ours, target, pair


def gradient(of: Tensor, pair: Discrete) -> Tensor:
    grads = torch.autograd.grad(of, [pair.theta, pair.phi], allow_unused=True)
    return torch.cat([torch.zeros(3) if g is None else g for g in grads])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_evidence_is_below_the_exact_cubo_which_rises_in_n(exact: Any) -> None:
    pair = Discrete()
    with torch.no_grad():
        chain = [pair.log_evidence(), *(pair.cubo(n) for n in (1.5, 2.0, 4.0))]
    assert all(b > a for a, b in pairwise(chain))


@pytest.mark.parametrize("n", [1.5, 2.0])
def test_cubos_estimate_is_renyis_and_tends_to_it_from_below(exact: Any, n: float) -> None:
    pair = Discrete()
    pyro.set_rng_seed(0)
    particles = CUBO(num_particles=20_000, n=n).draw(pair.model, pair.guide, (pair.x,), {})
    many = CUBO(n=n).bound(particles)
    assert torch.allclose(many, pair.cubo(n), atol=0.02)
    assert torch.allclose(many, Renyi(alpha=1 - n).bound(particles))
    few = particles.log_w.reshape(4, 5_000)
    mean = CUBO(n=n).bound(Particles(few, torch.zeros_like(few))).mean()
    assert mean < pair.cubo(n) - 0.01


def test_cubo_is_descended_and_its_direction_is_the_exact_cubos(exact: Any) -> None:
    ours, _, pair = estimate(exact, CUBO(num_particles=2))
    expected = gradient(pair.cubo(2.0), pair)
    cosine = float(ours @ expected / ours.norm() / expected.norm())
    assert cosine == pytest.approx(1.0, abs=1e-9)
    assert CUBO.is_upper_bound
    assert CUBO(num_particles=8).loss(pair.model, pair.guide, pair.x) == pytest.approx(
        float(pair.cubo(2.0).detach()), abs=1.0
    )


@pytest.mark.parametrize("n", [0.5, float("nan")])
def test_cubo_of_an_order_below_one_is_refused(n: float) -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        CUBO(n=n)


def test_one_partition_of_the_thermodynamic_path_is_leave_one_out(exact: Any) -> None:
    ours, _, _ = estimate(exact, ThermodynamicELBO(num_particles=2, num_partitions=1))
    expected, _, _ = estimate(exact, LeaveOneOut(num_particles=2))
    assert torch.allclose(ours, expected, atol=1e-12)


def exact_tvo(pair: Discrete, betas: list[float]) -> Tensor:
    w = pair.log_joint() - pair.log_q()
    total = torch.zeros(())
    for b, after in pairwise(betas):
        path = (b * pair.log_joint() + (1 - b) * pair.log_q()).softmax(0)
        total = total + (after - b) * (path * w).sum()
    return total


def test_the_thermodynamic_bound_rises_with_partitions_to_the_evidence(exact: Any) -> None:
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


def test_thermodynamic_bias_is_declared_and_falls_with_particles(exact: Any) -> None:
    assert not ThermodynamicELBO.unbiased
    biases = []
    for K in (2, 6):
        ours, _, pair = estimate(exact, ThermodynamicELBO(num_particles=K))
        betas = ThermodynamicELBO(num_particles=K).betas
        biases.append(relative(-ours, gradient(exact_tvo(pair, betas), pair)))
    assert biases[0] > biases[1] > 1e-3
    assert biases[1] < 0.2


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_thermodynamic_covariance_is_divided_as_it_is_written(beta: float) -> None:
    w = 2 * torch.randn(5, 3, dtype=torch.float64)
    v = (beta * w).softmax(0)
    written = v * (w - (v * w).sum(0)) / (1 - (v**2).sum(0))
    assert torch.allclose(contrasts(beta, w), written, rtol=1e-12)


def test_where_one_particle_has_all_the_weight_its_nearest_is_held_against_it() -> None:
    """As written, 0 / 0: the limit of P has only the pair of the two largest weights."""
    w = torch.tensor([-3000.0, 0.0, -2000.0]).unsqueeze(1)
    assert contrasts(1.0, w).flatten().tolist() == [0.0, 1000.0, -1000.0]


@pytest.mark.parametrize("make", [ReweightedWakeSleep, ThermodynamicELBO])
def test_point_estimates_keep_their_gradient(make: Any) -> None:
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
    ours = gradient(make(num_particles=20))
    assert torch.allclose(ours, gradient(IWAE(num_particles=20)), atol=0.1)
    assert ours.abs() > 0.3


def test_wake_sleep_is_unbiased_for_the_model_and_declares_its_guides_bias(exact: Any) -> None:
    assert not ReweightedWakeSleep.unbiased
    biases = []
    for K in (2, 6):
        ours, target, pair = estimate(exact, ReweightedWakeSleep(num_particles=K))
        assert torch.allclose(ours[:3], target[:3], atol=1e-9)  # theta: IWAE_K, exactly
        posterior = pair.log_joint().softmax(0).detach()
        wake = gradient((posterior * pair.log_q()).sum(), pair)
        biases.append(relative(-ours[3:], wake[3:]))
    assert biases[0] > biases[1] > 1e-3
