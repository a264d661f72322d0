"""Fixtures: a Gaussian pair with known log-weights, particles."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles

W = torch.tensor([[0.5, -1.0], [1.5, 0.3]])


def _model(x: Tensor) -> None:
    """z_n ~ N(0, I), x_n ~ N(z_n W, I)."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", Normal(z @ W, 1.0).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    """z_n ~ N(x_n + 0.2, 0.5² I)."""
    loc = pyro.param("loc", torch.tensor(0.2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x + loc, 0.5).to_event(1))


def _log_weights(p: Particles, x: Tensor) -> Tensor:
    """Log-weights (K, N) of `model` and `guide` from their densities."""
    z = p.site_draws["z"].value
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(z @ W, 1.0).log_prob(x).sum(-1)
    return log_p - Normal(x + 0.2, 0.5).log_prob(z).sum(-1)


def _particles(model: Any, guide: Any, *args: Any, K: int = 4, **options: Any) -> Particles:
    structure = analyze_for_particles(model, guide, args, {}, K, **options)
    return draw_particles(model, guide, args, {}, structure, K)


@pytest.fixture
def model() -> Callable[..., None]:
    return _model


@pytest.fixture
def guide() -> Callable[..., None]:
    return _guide


@pytest.fixture
def expected_log_weights() -> Callable[[Particles, Tensor], Tensor]:
    return _log_weights


@pytest.fixture
def particles() -> Callable[..., Particles]:
    """K particles of a pair: `particles(model, guide, *args, K=4)`."""
    return _particles
