"""Gaussian models with exact posteriors, and guides of known error."""

from collections.abc import Callable

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

Guide = Callable[[Tensor], None]


class LinearGaussian(PyroModule):
    """z ~ N(0, I_D), x | z ~ N(W z, noise² I_P), with exact evidence and posterior."""

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
        log_p: Tensor = MultivariateNormal(zeros, covariance).log_prob(x.double())
        return log_p

    def simulate(self, rows: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        W = self.W.detach()
        z = torch.randn(rows, W.shape[1], generator=generator)
        return z @ W.T + self.noise * torch.randn(rows, W.shape[0], generator=generator)


class ExactGuide:
    """The posterior of `LinearGaussian`; `width` multiplies its sd, `shift` (in sd) its mean."""

    def __init__(self, model: LinearGaussian, width: float = 1.0, shift: float = 0.0) -> None:
        self.model, self.width, self.shift = model, width, shift

    def __call__(self, x: Tensor) -> None:
        mean, covariance = self.model.posterior(x)
        root = torch.linalg.cholesky(covariance)
        mean = mean + self.shift * covariance.diagonal().sqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(mean, scale_tril=self.width * root))


def prior_guide(x: Tensor) -> None:
    """q(z | x) = p(z) of `LinearGaussian`: a collapsed posterior."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x.new_zeros(2), 1.0).to_event(1))


def mean_model(x: Tensor) -> None:
    """mu ~ N(0, 1), x_n ~ N(mu, 1)."""
    mu = pyro.sample("mu", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(mu, 1.0), obs=x)


def mean_guide(scale: float = 1.0, shift: float = 0.0, center: float | None = None) -> Guide:
    """The posterior of `mean_model`; `scale` multiplies its sd, `shift` (in sd) its mean.

    With `center` the guide does not read the data.
    """

    def guide(x: Tensor) -> None:
        sd = (len(x) + 1) ** -0.5
        loc = x.sum() / (len(x) + 1) if center is None else torch.tensor(center)
        pyro.sample("mu", Normal(loc + shift * sd, scale * sd))

    return guide
