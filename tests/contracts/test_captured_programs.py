"""Every estimator and every model of the house, captured: Pyro's steps under one seed."""

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


def agree(make: Callable[[], Any], steps: int = 25) -> None:
    losses = []
    for ours in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide, loss, batch = make()
        optimizer = pyro.optim.Adam({"lr": 0.01})
        svi: Any = (
            CompiledSVI(model, guide, optimizer, loss, engine="captured")
            if ours
            else SVI(model, guide, optimizer, loss)
        )
        values = [svi.step(*batch) for _ in range(steps)]
        losses.append([torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in values])
    eager, captured = (torch.cat(values) for values in losses)
    scale = eager.abs().max()
    assert torch.allclose(captured, eager, rtol=1e-5, atol=1e-7 * float(scale))


@pytest.mark.parametrize("name", estimators.__all__)
def test_estimators_are_captured(name: str) -> None:
    kind = getattr(estimators, name)
    continuous = kind.requires == "reparameterized"
    model = programs.Decoder if continuous else programs.BeliefNet
    guide = programs.Encoder if continuous else programs.BeliefGuide
    # Without dropout, which would make two runs of the guide score one value differently.
    agree(lambda: (model(), guide().eval(), kind(), (programs.binary(),)))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_mixtures_are_captured(covariance: str) -> None:
    def make() -> Any:
        model = GaussianMixture(3, 3, covariance=covariance)
        model.initialize(programs.real())
        return model, programs.nothing, TraceEnum_ELBO(), (programs.real(),)

    agree(make)


def test_bayesian_mixture_is_captured() -> None:
    def make() -> Any:
        model = BayesianGaussianMixture(3, 3)
        return model, auto_guide(model, programs.real()), TraceEnum_ELBO(), (programs.real(),)

    agree(make)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian-shared"])
def test_auto_encoders_are_captured(likelihood: str) -> None:
    x = (programs.real() > 0).float() if likelihood == "bernoulli" else programs.real()

    def make() -> Any:
        model = VAE(2, 3, (8,), likelihood)
        model.initialize(x)
        return model, AmortizedNormal(model, x), estimators.IWAE(5), (x,)

    agree(make)
