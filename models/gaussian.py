"""One Gaussian of P columns, without anything latent: the plainest family of densities.

x_n ~ N(μ, L Lᵀ)    observed    (N, P),  L lower triangular with a positive diagonal
"""

import pyro
import torch
from pyro.distributions import MultivariateNormal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn


class Gaussian(PyroModule):
    """N(μ, L Lᵀ).

    Args:
        observed: P.
        center: where μ begins.
        scale: the standard deviation that L begins with.

    Raises:
        ValueError: for no columns, or a scale that is not positive.
    """

    def __init__(self, observed: int = 2, center: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        if observed < 1 or not scale > 0:
            raise ValueError(f"Gaussian needs observed >= 1, scale > 0; got {observed}, {scale}.")
        self.observed, self.center, self.scale = observed, center, scale
        self.mean = nn.Parameter(torch.full((observed,), float(center)))
        self.root = PyroParam(scale * torch.eye(observed), constraints.lower_cholesky)

    def density(self) -> MultivariateNormal:
        """Its distribution now: event (P,)."""
        return MultivariateNormal(self.mean, scale_tril=self.root)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.density(), obs=x)
