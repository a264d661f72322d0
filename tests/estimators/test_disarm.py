"""DisARM: exact expectation over three regions of u per bit."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor, nn

from ppl_lvm.estimators import DisARM, ScoreFunction, disarm
from ppl_lvm.programs.minibatch import ScaleDataPlate


class Bits(nn.Module):
    """Two bits for each of two rows; q depends on x."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(2)
        self.theta = nn.Parameter(torch.randn(2, generator=gen))
        self.a = nn.Parameter(torch.randn(2, generator=gen))
        self.phi = nn.Parameter(torch.randn(2, generator=gen))
        self.x = torch.tensor([0.5, -1.2])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.a).to_event(1))
            pyro.sample("x", Normal((z * self.theta).sum(-1) + z.prod(-1), 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=x.unsqueeze(-1) + self.phi).to_event(1))

    def logits(self) -> Tensor:
        return (self.x.unsqueeze(-1) + self.phi).detach()

    def elbo(self) -> Tensor:
        """Exact ELBO, summed over the rows."""
        total = torch.zeros(())
        for bits in product([0.0, 1.0], repeat=2):
            z = torch.tensor(bits)
            log_q = Bernoulli(logits=self.x.unsqueeze(-1) + self.phi).log_prob(z).sum(-1)
            log_p = Bernoulli(logits=self.a).log_prob(z).sum()
            log_p = log_p + Normal((z * self.theta).sum() + z.prod(), 0.7).log_prob(self.x)
            total = total + (log_q.exp() * (log_p - log_q)).sum()
        return total

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(loss, [self.theta, self.a, self.phi]))


def regions(logits: Tensor) -> Iterator[tuple[Tensor, float]]:
    """One u per region with equal bits b and b', with its probability."""
    p = logits.sigmoid()
    m = torch.minimum(p, 1 - p)
    midpoints = torch.stack([m / 2, torch.full_like(m, 0.5), 1 - m / 2])
    lengths = torch.stack([m, 1 - 2 * m, m])
    for choice in product(range(3), repeat=logits.numel()):
        index = torch.tensor(choice).reshape(1, *logits.shape)
        yield midpoints.gather(0, index)[0], float(lengths.gather(0, index).prod())


def expected(estimator: Any, pair: Bits, monkeypatch: Any) -> Tensor:
    total = torch.zeros(6)
    for u, probability in regions(pair.logits()):
        monkeypatch.setattr(disarm, "uniform", lambda like, u=u: u.expand_as(like))
        loss = estimator.differentiable_loss(pair.model, pair.guide, pair.x)
        total += probability * pair.gradient(loss)
    return total


@pytest.mark.parametrize("vectorize", [True, False])
def test_disarm_expected_gradient_is_that_of_the_elbo(
    float64: None, monkeypatch: Any, vectorize: bool
) -> None:
    pair = Bits()
    ours = expected(DisARM(vectorize_particles=vectorize), pair, monkeypatch)
    target = pair.gradient(-pair.elbo())
    assert (ours - target).abs().max() < 1e-9


def test_disarm_without_sigmoid_factor_is_biased(float64: None, monkeypatch: Any) -> None:
    """Deliberately wrong: the factor σ(|φ|) omitted."""

    def direction(self: Any, u: Tensor, logits: Tensor, msg: Any) -> Tensor:
        b, b2 = self._first(u, logits), self._second(u, logits)
        bits: Tensor = ((1 - 2 * b2) * (b != b2) * logits).sum(-1)
        return bits.reshape(1, -1)

    pair = Bits()
    monkeypatch.setattr(disarm.Antithetic, "_direction", direction)
    ours = expected(DisARM(vectorize_particles=True), pair, monkeypatch)
    assert (ours - pair.gradient(-pair.elbo())).abs().max() > 1e-2


def test_disarm_scales_minibatch() -> None:
    pair, scaled = Bits(), ScaleDataPlate(20)
    run = DisARM(num_particles=4).differentiable_loss
    pyro.set_rng_seed(1)
    plain = run(pair.model, pair.guide, pair.x)
    pyro.set_rng_seed(1)
    ten = run(scaled(pair.model), scaled(pair.guide), pair.x)
    assert torch.allclose(ten, 10 * plain)
    assert torch.allclose(pair.gradient(ten), 10 * pair.gradient(plain))


@pytest.mark.slow
def test_disarm_has_less_variance_than_independent_pairs() -> None:
    pair = Bits()

    def spread(estimator: Any) -> float:
        run = estimator.differentiable_loss
        sample = [pair.gradient(run(pair.model, pair.guide, pair.x)) for _ in range(400)]
        return float(torch.stack(sample)[:, 4:].var(0).sum())

    assert spread(DisARM()) < 0.7 * spread(ScoreFunction(num_particles=2))


def test_disarm_rejects_odd_particles_and_unsupported_guides() -> None:
    with pytest.raises(ValueError, match="even number"):
        DisARM(num_particles=3)

    def gaussian(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))

    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(0.5))
            pyro.sample("y", Bernoulli(0.5))

    for program in (gaussian, two):
        with pytest.raises(ValueError, match=r"one Bernoulli site.*'z'.*Use LeaveOneOut"):
            DisARM().loss(program, program, torch.zeros(2))
