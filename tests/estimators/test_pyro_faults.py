"""Wrong gradients of Pyro 1.9.2, reproduced beside ours.

The losses are right in each case; only the exact gradient reveals the fault.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
)
from torch import Tensor, nn

from ppl_lvm.estimators import ELBO, IWAE, VIMCO, LeaveOneOut, Renyi, StickingTheLanding
from ppl_lvm.particles import log_weights
from ppl_lvm.testing.expectations import ForceDraws, enumerate_cases, enumerate_expectation


class Discrete(nn.Module):
    """c ~ Categorical(3), x ~ Normal(theta_c, 1); no plate, one row."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.4, -0.8, 1.5], dtype=torch.float64))
        self.phi = nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        c = pyro.sample("c", Categorical(logits=torch.zeros(3, dtype=x.dtype)))
        pyro.sample("x", Normal(self.theta[c.long()], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("c", Categorical(logits=self.phi))


X = torch.tensor(1.0, dtype=torch.float64)


def pyro_gradient(elbo: Any, K: int) -> Tensor:
    """E[gradient of φ] of a Pyro loss by the sum over all draws of K particles."""
    pair = Discrete()
    total = torch.zeros(3)
    for case in enumerate_cases(K, c=(3, ())):
        pair.zero_grad()
        with ForceDraws(case) as handler:
            elbo.loss_and_grads(pair.model, pair.guide, X)
        if pair.phi.grad is not None:
            total += handler.log_prob.exp().detach() * pair.phi.grad
    return total


def our_gradient(estimator: Any, K: int) -> tuple[Tensor, Tensor]:
    """(expectation of ours, exact gradient) of φ."""
    pair = Discrete()
    cases = enumerate_cases(K, c=(3, ()))
    result = enumerate_expectation(estimator, pair.model, pair.guide, (X,), [pair.phi], cases)
    return result.gradient, result.target


@pytest.mark.usefixtures("float64")
def test_renyi_at_zero_has_a_zero_gradient_for_discrete_sites_in_pyro() -> None:
    theirs = pyro_gradient(RenyiELBO(alpha=0.0, num_particles=2), 2)
    ours, target = our_gradient(VIMCO(num_particles=2), 2)
    assert theirs.abs().max() < 1e-12
    assert target.abs().max() > 0.01
    assert (ours - target).abs().max() < 1e-12


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_renyi_is_biased_for_discrete_sites_in_pyro(alpha: float) -> None:
    theirs = pyro_gradient(RenyiELBO(alpha=alpha, num_particles=2), 2)
    ours, target = our_gradient(Renyi(num_particles=2, alpha=alpha), 2)
    assert (theirs - target).norm() > 0.2 * target.norm()
    assert (ours - target).abs().max() < 1e-12


@pytest.mark.usefixtures("float64")
def test_mean_field_elbo_drops_the_score_in_pyro_when_validation_is_off() -> None:
    with pyro.validation_enabled(False):
        theirs = pyro_gradient(TraceMeanField_ELBO(), 1)
    ours, target = our_gradient(LeaveOneOut(num_particles=2), 2)
    assert (theirs - target).norm() > 0.2 * target.norm()
    assert (ours - target).abs().max() < 1e-12
    pair = Discrete()
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"'c'.*LeaveOneOut"):
        ELBO().loss_and_grads(pair.model, pair.guide, X)


def test_tensor_monte_carlo_has_a_zero_gradient_in_pyro() -> None:
    pair = Discrete()
    guide = config_enumerate(pair.guide, default="parallel", num_samples=2, expand=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            TraceTMC_ELBO().loss_and_grads(pair.model, guide, X)
    assert pair.phi.grad is None or pair.phi.grad.abs().max() < 1e-12


class Subsampled:
    """One hundred rows, ten at a time; the evidence is exact."""

    def __init__(self) -> None:
        gen = torch.Generator().manual_seed(0)
        self.x = torch.randn(100, generator=gen) * math.sqrt(2.0)
        self.log_evidence = float(Normal(0.0, math.sqrt(2.0)).log_prob(self.x).sum())

    def model(self) -> None:
        with pyro.plate("data", 100, subsample_size=10, dim=-1) as rows:
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=self.x[rows])

    def guide(self) -> None:
        with pyro.plate("data", 100, subsample_size=10, dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))


def mean_and_error(loss: Callable[[], float], n: int) -> tuple[float, float]:
    values = torch.tensor([-loss() for _ in range(n)])
    return float(values.mean()), float(values.std()) / math.sqrt(n)


def test_a_subsampled_importance_bound_exceeds_the_evidence_in_pyro() -> None:
    pair = Subsampled()
    theirs = RenyiELBO(alpha=0.0, num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    mean, error = mean_and_error(lambda: theirs.loss(pair.model, pair.guide), 100)
    assert mean > pair.log_evidence + 5 * error
    ours = IWAE(num_particles=50)
    mean, error = mean_and_error(lambda: ours.loss(pair.model, pair.guide), 100)
    assert mean < pair.log_evidence + 5 * error
    assert mean > pair.log_evidence - 5 * error - 5.0  # it is tight too


def test_gradient_at_the_posterior_varies_in_pyro() -> None:
    loc = torch.tensor(0.5, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", Normal(loc, math.sqrt(0.5)))

    def spread(elbo: Any) -> float:
        grads = []
        for _ in range(50):
            (g,) = torch.autograd.grad(elbo.differentiable_loss(model, guide), loc)
            grads.append(g)
        return float(torch.stack(grads).std())

    assert spread(Trace_ELBO()) > 0.5
    assert spread(StickingTheLanding()) < 1e-6


@pytest.mark.slow
def test_wake_sleep_uses_one_weight_for_all_rows_in_pyro() -> None:
    x = torch.linspace(-2.0, 2.0, 20)

    def model() -> None:
        with pyro.plate("data", 20, dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide() -> None:
        with pyro.plate("data", 20, dim=-1):
            pyro.sample("z", Normal(0.0, 1.0))

    theirs = ReweightedWakeSleep(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1, model_has_params=False
    )
    joint, joint_error = mean_and_error(lambda: float(theirs.loss(model, guide)[0]), 400)
    iwae = IWAE(num_particles=3)  # one, so that the pair is analyzed once
    ours, error = mean_and_error(lambda: iwae.loss(model, guide), 400)
    assert ours > joint + 5 * math.hypot(error, joint_error)
    assert log_weights(model, guide, num_particles=3).shape == (3, 20)
