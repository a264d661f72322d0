"""Multivariate normals in unconstrained coordinates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_lvm.approximation.unconstrained import log_two_pi


@dataclass(frozen=True)
class Normal:
    """N(loc, L Lᵀ).

    Attributes:
        loc: (D,).
        scale_tril: L (D, D).
    """

    loc: Tensor
    scale_tril: Tensor

    @classmethod
    def of_covariance(cls, loc: Tensor, covariance: Tensor) -> "Normal":
        """The normal of a covariance matrix (D, D).

        Raises:
            torch.linalg.LinAlgError: it is not positive definite.
        """
        return cls(loc, torch.linalg.cholesky((covariance + covariance.T) / 2))

    @classmethod
    def of_draws(cls, draws: Tensor) -> "Normal":
        """The normal with the mean and the covariance of draws (S, D)."""
        return cls.of_covariance(draws.mean(0), torch.cov(draws.T).reshape(draws.shape[1], -1))

    @property
    def dim(self) -> int:
        """D."""
        return len(self.loc)

    @property
    def sd(self) -> Tensor:
        """Standard deviations (D,)."""
        return self.scale_tril.square().sum(1).sqrt()

    @property
    def covariance(self) -> Tensor:
        """L Lᵀ."""
        return self.scale_tril @ self.scale_tril.T

    @property
    def log_normalizer(self) -> Tensor:
        """log of ∫ exp(−½ (u − loc)ᵀ Σ⁻¹ (u − loc)) du."""
        return self.scale_tril.diagonal().log().sum() + log_two_pi(self.dim)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (count, D)."""
        noise = torch.randn(count, self.dim, generator=generator, dtype=self.loc.dtype)
        return self.loc + noise @ self.scale_tril.T

    def log_prob(self, u: Tensor) -> Tensor:
        """log q of vectors (S, D)."""
        z = torch.linalg.solve_triangular(self.scale_tril, (u - self.loc).T, upper=False)
        return -0.5 * z.square().sum(0) - self.log_normalizer
