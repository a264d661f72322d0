"""A linear-Gaussian model in closed form, its exact guide, and guides that are wrong on purpose."""

from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn


class LinearGaussian(PyroModule):
    """z ~ N(0, I_D), x | z ~ N(W z, noise² I_P): evidence and posterior are known."""

    def __init__(self, latent: int = 2, observed: int = 5, noise: float = 0.7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.W = nn.Parameter(torch.randn(observed, latent, generator=generator))
        self.noise = noise

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            zeros = x.new_zeros(self.W.shape[1])
            z = pyro.sample("z", Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", Normal(z @ self.W.T, self.noise).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, D) and covariance (D, D)."""
        W = self.W.detach()
        precision = torch.eye(W.shape[1]) + W.T @ W / self.noise**2
        covariance = torch.linalg.inv(precision)
        return x @ W @ covariance / self.noise**2, covariance

    def exact(self, x: Tensor) -> Tensor:
        """log p(x_n) (N,)."""
        W = self.W.detach().double()
        covariance = W @ W.T + self.noise**2 * torch.eye(W.shape[0], dtype=torch.float64)
        zeros = torch.zeros(W.shape[0], dtype=torch.float64)
        found: Tensor = MultivariateNormal(zeros, covariance).log_prob(x.double())
        return found

    def simulate(self, rows: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        W = self.W.detach()
        z = torch.randn(rows, W.shape[1], generator=generator)
        return z @ W.T + self.noise * torch.randn(rows, W.shape[0], generator=generator)


class ExactGuide:
    """The posterior; `width` multiplies its sd, `shift` (in sd) moves its mean."""

    def __init__(self, model: LinearGaussian, width: float = 1.0, shift: float = 0.0) -> None:
        self.model, self.width, self.shift = model, width, shift

    def __call__(self, x: Tensor) -> None:
        mean, covariance = self.model.posterior(x)
        root = torch.linalg.cholesky(covariance)
        mean = mean + self.shift * covariance.diagonal().sqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(mean, scale_tril=self.width * root))


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian()


@pytest.fixture
def exact_guide() -> Callable[..., ExactGuide]:
    return ExactGuide
