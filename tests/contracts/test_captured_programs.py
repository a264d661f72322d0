"""Contract of capture: Pyro's steps under one seed."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO

import captured_programs as programs
from ppl_lvm import estimators
from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.guides import AmortizedNormal, auto_guide
from ppl_lvm.models import VAE, BayesianGaussianMixture, GaussianMixture


def check_captured_losses(make: Callable[[], Any], steps: int = 12) -> None:
    """Assert that captured steps have the losses of Pyro's."""
    losses = []
    for captured in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide, loss, batch = make()
        optimizer = pyro.optim.Adam({"lr": 0.01})
        svi: Any = (
            CompiledSVI(model, guide, optimizer, loss, engine="captured")
            if captured
            else SVI(model, guide, optimizer, loss)
        )
        values = [svi.step(*batch) for _ in range(steps)]
        losses.append(
            torch.cat([torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in values])
        )
    eager, captured_losses = losses
    scale = eager.abs().max()
    assert torch.allclose(captured_losses, eager, rtol=1e-5, atol=1e-7 * float(scale))


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"num_particles": 2}, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", estimators.__all__)
def test_captured_steps_of_every_estimator_are_pyros(name: str, options: dict[str, Any]) -> None:
    estimator = getattr(estimators, name)
    continuous = estimator.requires == "reparameterized"
    model = programs.Decoder if continuous else programs.BeliefNet
    guide = programs.Encoder if continuous else programs.BeliefGuide
    # Without dropout, under which two runs of the guide would score one value differently.
    check_captured_losses(
        lambda: (model(), guide().eval(), estimator(**options), (programs.binary(),))
    )


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_captured_steps_of_gaussian_mixtures_are_pyros(covariance: str) -> None:
    def make() -> Any:
        model = GaussianMixture(3, 3, covariance=covariance)
        model.initialize(programs.real())
        return model, programs.nothing, TraceEnum_ELBO(), (programs.real(),)

    check_captured_losses(make)


def test_captured_steps_of_a_bayesian_mixture_are_pyros() -> None:
    def make() -> Any:
        model = BayesianGaussianMixture(3, 3)
        return model, auto_guide(model, programs.real()), TraceEnum_ELBO(), (programs.real(),)

    check_captured_losses(make)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian-shared"])
def test_captured_steps_of_autoencoders_are_pyros(likelihood: str) -> None:
    x = (programs.real() > 0).float() if likelihood == "bernoulli" else programs.real()

    def make() -> Any:
        model = VAE(2, 3, (8,), likelihood)
        model.initialize(x)
        return model, AmortizedNormal(model, x), estimators.IWAE(5), (x,)

    check_captured_losses(make)
