"""Pathwise estimators: their expected gradient is their bound's, by Gauss-Hermite quadrature.

With Gaussian draws z = loc + scale·ε the expectation over K particles is an integral over ε, whose
nodes stand here as the rows of one batch. No seeds; wrong variants beside it.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Delta, Normal
from pyro.poutine import mask, scale
from torch import Tensor, nn

from ppl_lvm import estimators
from ppl_lvm.estimators import ELBO, IWAE, DReG, DReGRenyi, Renyi, StickingTheLanding
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles

ESTIMATORS: list[Estimator] = [
    ELBO(num_particles=2),
    ELBO(num_particles=2, analytic_kl=False),
    IWAE(num_particles=2),
    StickingTheLanding(num_particles=2),
    DReG(num_particles=2),
    DReGRenyi(num_particles=2, alpha=-0.5),
    DReGRenyi(num_particles=2, alpha=0.5),
    DReGRenyi(num_particles=2, alpha=2.0),
    Renyi(num_particles=2, alpha=0.5),
]
Program = Callable[[Tensor], None]


class Pair(nn.Module):
    """One latent per row; the mean of the model's decoder shares `shared` with the guide."""

    sites: tuple[str, ...] = ("z",)

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(0.4))
        self.theta = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.phi = nn.Parameter(torch.tensor([0.2, -0.7]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(self.theta[0], 1.0))
            pyro.sample("x", Normal(self.shared * z + self.theta[1], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.shared * x + self.phi[0], self.phi[1].exp()))


class TwoLayers(Pair):
    """z1, then z2 given z1, in the guide; the other way round in the model."""

    sites = ("z1", "z2")

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", Normal(self.theta[0], 1.0))
            z1 = pyro.sample("z1", Normal(self.shared * z2, 1.0))
            pyro.sample("x", Normal(z1 + self.theta[1], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", Normal(self.phi[0] + 0.1 * x, self.phi[1].exp()))
            pyro.sample("z2", Normal(self.shared * z1, 0.8))


class Tempered(Pair):
    """The latent's densities are raised to 0.6, as when the KL is annealed."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with scale(scale=0.6):
                z = pyro.sample("z", Normal(self.theta[0], 1.0))
            pyro.sample("x", Normal(self.shared * z + self.theta[1], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with scale(scale=0.6):
            super().guide(x)


class Masked(Pair):
    """The latent's densities do not count at all."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with mask(mask=False):
                z = pyro.sample("z", Normal(self.theta[0], 1.0))
            pyro.sample("x", Normal(self.shared * z + self.theta[1], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with mask(mask=False):
            super().guide(x)


class GlobalPoint(Pair):
    """A point-estimated scale outside the plate: a parameter of both programs' densities."""

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(self.theta[0] * s, 1.0))
            pyro.sample("x", Normal(self.shared * z + s, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        s = pyro.sample("s", Delta(self.theta[1]))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.phi[0] + s * x, self.phi[1].exp()))


class LocalPoint(Pair):
    """A point for every row, drawn before the latent and seen by it."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", Normal(0.0, 1.0))
            z = pyro.sample("z", Normal(self.theta[0] * s, 1.0))
            pyro.sample("x", Normal(self.shared * z + s, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", Delta(self.theta[1] * x))
            pyro.sample("z", Normal(self.phi[0] + s, self.phi[1].exp()))


def expected(
    exact: Any, forced: Any, estimator: Any, pair: Pair, nodes: int
) -> tuple[Tensor, Tensor]:
    """(E[∇S], ∇E[bound]) of one datum x = 0.7."""
    K = estimator.num_particles
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    dims = K * len(pair.sites)
    grid = torch.tensor(list(product(at, repeat=dims)))  # (rows, dims)
    mass = torch.tensor([np.prod(w) for w in product(weight, repeat=dims)])  # (rows,)
    noise = grid.T.reshape(len(pair.sites), K, -1)
    case = dict(zip(pair.sites, noise, strict=True))
    x = torch.full((len(mass),), 0.7)
    estimator.analyze(pair.model, pair.guide, (x,), {})
    with forced(case):
        particles = estimator.draw(pair.model, pair.guide, (x,), {})
        surrogate = (mass * estimator.surrogate(particles)).sum()
        bound = (mass * estimator.bound(particles)).sum()
    return flat(surrogate, pair), flat(bound, pair)


def flat(value: Tensor, pair: Pair) -> Tensor:
    grads = torch.autograd.grad(value, list(pair.parameters()), retain_graph=True)
    return torch.cat([g.reshape(-1) for g in grads])


def name(estimator: Any) -> str:
    return f"{type(estimator).__name__}{getattr(estimator, 'alpha', '')}"


@pytest.mark.parametrize(
    "pair", [Pair, Tempered, Masked, GlobalPoint, LocalPoint], ids=lambda c: c.__name__
)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
def test_expected_gradient_is_the_bounds(
    exact: Any, forced: Any, estimator: Estimator, pair: type[Pair]
) -> None:
    estimate, target = expected(exact, forced, estimator, pair(), nodes=90)
    assert target.abs().max() > 1e-2
    assert (estimate - target).abs().max() < 1e-9


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
def test_guides_of_two_layers(exact: Any, forced: Any, estimator: Estimator) -> None:
    estimate, target = expected(exact, forced, estimator, TwoLayers(), nodes=18)
    assert (estimate - target).abs().max() < 1e-4


def test_every_reparameterized_class_is_here() -> None:
    classes = [getattr(estimators, n) for n in estimators.__all__]
    needed = {c for c in classes if c.requires == "reparameterized" and c.unbiased}
    assert needed <= {type(e) for e in ESTIMATORS}


class StickingInsideIWAE(estimators.IWAE):
    """The score term of log q left out inside the log-mean-exp, where its mean is not zero."""

    def surrogate(self, particles: Particles) -> Tensor:
        v = particles.log_w.detach().softmax(0)
        return (v * (particles.log_p - particles.log_q_at_fixed_parameters)).sum(0)


class ForgetsSharedWeights(estimators.DReG):
    """v² on every path: right for the guide, wrong for the model."""

    def surrogate(self, particles: Particles) -> Tensor:
        v = particles.log_w.detach().softmax(0)
        return (v**2 * (particles.log_p - particles.log_q_at_fixed_parameters)).sum(0)


class ForgetsTempering(estimators.DReG):
    """Takes a tempered log q for the density of the draws."""

    def surrogate(self, particles: Particles) -> Tensor:
        particles.tempered = False
        return super().surrogate(particles)


@pytest.mark.parametrize(
    ("wrong", "pair"),
    [(StickingInsideIWAE, Pair), (ForgetsSharedWeights, Pair), (ForgetsTempering, Tempered)],
)
def test_wrong_estimators_are_caught(exact: Any, forced: Any, wrong: Any, pair: Any) -> None:
    estimate, target = expected(exact, forced, wrong(num_particles=2), pair(), nodes=90)
    assert (estimate - target).abs().max() > 1e-2
