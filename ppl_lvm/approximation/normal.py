"""Multivariate normals in unconstrained coordinates.

A normal is u = loc + A v with v standard normal. `DenseNormal` keeps a triangle of D² numbers,
`FactoredNormal` (in its own file) a scale for each coordinate and a few directions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_lvm.approximation.unconstrained import log_two_pi

MAX_DENSE = 500  # values, up to which all covariances are kept


class Normal(ABC):
    """N(loc, A Aᵀ).

    Attributes:
        loc: (D,).
    """

    loc: Tensor

    @property
    def dim(self) -> int:
        """D."""
        return len(self.loc)

    @property
    @abstractmethod
    def sd(self) -> Tensor:
        """Standard deviations (D,)."""

    @property
    @abstractmethod
    def log_det(self) -> Tensor:
        """log |det A|."""

    @abstractmethod
    def stretched(self, v: Tensor) -> Tensor:
        """A v for rows v (S, D)."""

    @abstractmethod
    def pulled_back(self, gradient: Tensor) -> Tensor:
        """Aᵀ g for rows g (S, D): gradients with respect to v."""

    @abstractmethod
    def standardized(self, u: Tensor) -> Tensor:
        """v = A⁻¹ (u − loc) for rows u (S, D)."""

    @property
    def log_normalizer(self) -> Tensor:
        """log of ∫ exp(−½ (u − loc)ᵀ Σ⁻¹ (u − loc)) du."""
        return self.log_det + log_two_pi(self.dim)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (count, D)."""
        noise = torch.randn(count, self.dim, generator=generator, dtype=self.loc.dtype)
        return self.loc + self.stretched(noise)

    def log_prob(self, u: Tensor) -> Tensor:
        """log q of vectors (S, D)."""
        return -0.5 * self.standardized(u).square().sum(1) - self.log_normalizer


@dataclass(frozen=True)
class DenseNormal(Normal):
    """N(loc, L Lᵀ).

    Attributes:
        loc: (D,).
        scale_tril: L (D, D).
    """

    loc: Tensor
    scale_tril: Tensor

    @classmethod
    def of_covariance(cls, loc: Tensor, covariance: Tensor) -> "DenseNormal":
        """The normal of a covariance matrix (D, D).

        Raises:
            torch.linalg.LinAlgError: it is not positive definite.
        """
        return cls(loc, torch.linalg.cholesky((covariance + covariance.T) / 2))

    @classmethod
    def of_draws(cls, draws: Tensor) -> "DenseNormal":
        """The normal with the mean and the covariance of draws (S, D)."""
        return cls.of_covariance(draws.mean(0), torch.cov(draws.T).reshape(draws.shape[1], -1))

    @property
    def sd(self) -> Tensor:
        return self.scale_tril.square().sum(1).sqrt()

    @property
    def log_det(self) -> Tensor:
        return self.scale_tril.diagonal().log().sum()

    @property
    def covariance(self) -> Tensor:
        """L Lᵀ."""
        return self.scale_tril @ self.scale_tril.T

    def stretched(self, v: Tensor) -> Tensor:
        return v @ self.scale_tril.T

    def pulled_back(self, gradient: Tensor) -> Tensor:
        return gradient @ self.scale_tril

    def standardized(self, u: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, (u - self.loc).T, upper=False).T
