"""Posteriors over global latents with exact moments."""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


@dataclass(frozen=True)
class KnownPosterior:
    """A model, its data, and the exact mean and covariance of its vector `b`."""

    model: Any
    batch: tuple[Tensor, ...]
    mean: Tensor
    covariance: Tensor
    log_evidence: float | None = None


def linear_normal() -> KnownPosterior:
    """b ~ N(0, 4 I), y ~ N(X b, 0.5): a normal posterior with correlations, in double precision."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    X[:, 2] = 0.8 * X[:, 1] + 0.3 * X[:, 2]
    X = X * torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)  # units that differ
    y = X @ torch.tensor([1.0, -0.02, 3.0], dtype=torch.float64)
    y = y + 0.5 * torch.randn(12, generator=generator, dtype=torch.float64)

    def model(X: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ b, 0.5), obs=y)

    covariance = torch.linalg.inv(X.T @ X / 0.25 + torch.eye(3, dtype=torch.float64) / 4)
    mean = covariance @ (X.T @ y) / 0.25
    marginal = 4 * X @ X.T + 0.25 * torch.eye(12, dtype=torch.float64)
    zero = torch.zeros(12, dtype=torch.float64)
    evidence = dist.MultivariateNormal(zero, marginal).log_prob(y)
    return KnownPosterior(model, (X, y), mean, covariance, float(evidence))


def flat_regression() -> KnownPosterior:
    """y ~ N(X b, s) with flat priors on b and s > 0: b has a t distribution with N − P − 1 dof."""
    generator = torch.Generator().manual_seed(0)
    N = 60
    x = torch.randn(N, generator=generator, dtype=torch.float64)
    X = torch.stack([torch.ones(N, dtype=torch.float64), x], 1)
    y = X @ torch.tensor([1e4, 300.0], dtype=torch.float64)
    y = y + 50 * torch.randn(N, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(X.T @ X)
    mean = inverse @ X.T @ y
    squares = (y - X @ mean).square().sum()
    return KnownPosterior(flat_model, (X, y), mean, squares / (N - 2 - 1 - 2) * inverse)


def flat_model(X: Tensor, y: Tensor) -> None:
    """A regression with improper priors."""
    flat = constraints.independent(constraints.real, 1)
    b = pyro.sample("b", dist.ImproperUniform(flat, (), (X.shape[1],)))
    s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ b, s), obs=y)
