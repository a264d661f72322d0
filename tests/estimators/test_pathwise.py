"""Pathwise estimators: expected gradients by Gauss-Hermite quadrature."""

from typing import Any

import pytest

from ppl_lvm import estimators
from ppl_lvm.estimators import ELBO, IWAE, DReG, DReGRenyi, Renyi, StickingTheLanding
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles
from ppl_lvm.testing.exact_programs import (
    GAUSSIAN,
    GaussianProgram,
    TemperedGaussianProgram,
    TwoLayerProgram,
)
from ppl_lvm.testing.expectations import Expectation, quadrature_expectation

pytestmark = pytest.mark.usefixtures("float64")

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


def expectation(estimator: Estimator, program: GaussianProgram, nodes: int) -> Expectation:
    parameters = list(program.parameters())
    return quadrature_expectation(
        estimator, program.model, program.guide, 0.7, parameters, program.sites, nodes
    )


def name(estimator: Any) -> str:
    return f"{type(estimator).__name__}{getattr(estimator, 'alpha', '')}"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            c, marks=[] if c in (GaussianProgram, TemperedGaussianProgram) else pytest.mark.slow
        )
        for c in GAUSSIAN
    ],
    ids=lambda c: c.__name__,
)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
def test_expected_gradient_is_that_of_the_bound(
    estimator: Estimator, program: type[GaussianProgram]
) -> None:
    result = expectation(estimator, program(), nodes=90)
    assert result.target.abs().max() > 1e-2
    assert (result.gradient - result.target).abs().max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
def test_expected_gradient_is_that_of_the_bound_for_two_layers(estimator: Estimator) -> None:
    result = expectation(estimator, TwoLayerProgram(), nodes=18)
    assert (result.gradient - result.target).abs().max() < 1e-4


def test_every_reparameterized_class_is_listed() -> None:
    classes = [getattr(estimators, n) for n in estimators.__all__]
    required = {c for c in classes if c.requires == "reparameterized" and c.unbiased}
    assert required <= {type(e) for e in ESTIMATORS}


class StickingInsideIWAE(estimators.IWAE):
    """The score term of log q omitted inside the log-mean-exp, where its mean is not zero."""

    def surrogate(self, particles: Particles) -> Any:
        v = particles.log_w.detach().softmax(0)
        return (v * (particles.log_p - particles.log_q_at_fixed_parameters)).sum(0)


class SquaredModelWeights(estimators.DReG):
    """v² on every path: right for the guide, wrong for the model."""

    def surrogate(self, particles: Particles) -> Any:
        v = particles.log_w.detach().softmax(0)
        return (v**2 * (particles.log_p - particles.log_q_at_fixed_parameters)).sum(0)


class UntemperedDensity(estimators.DReG):
    """Uses a tempered log q as the density of the draws."""

    def surrogate(self, particles: Particles) -> Any:
        particles.tempered = False
        return super().surrogate(particles)


@pytest.mark.parametrize(
    ("wrong", "program"),
    [
        (StickingInsideIWAE, GaussianProgram),
        (SquaredModelWeights, GaussianProgram),
        (UntemperedDensity, TemperedGaussianProgram),
    ],
)
def test_wrong_estimator_has_another_expected_gradient(wrong: Any, program: Any) -> None:
    result = expectation(wrong(num_particles=2), program(), nodes=90)
    assert (result.gradient - result.target).abs().max() > 1e-2
