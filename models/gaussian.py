"""Multivariate normal distribution without latents.

x_n ~ N(μ, L Lᵀ)    observed    (N, P),  L lower triangular with a positive diagonal
"""

from functools import partial

import pyro
import torch
from pyro.distributions import MultivariateNormal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Number, Positive
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import check_complete
from ppl_lvm.nn.lazy import check_rows


class Gaussian(PyroModule):
    """N(μ, L Lᵀ).

    Args:
        observed: P.
        center: initial value of the entries of μ.
        scale: initial standard deviation.

    Raises:
        ValueError: for no columns, or a scale that is not positive.
    """

    example_batch = staticmethod(partial(example_rows, columns=2))

    def __init__(self, observed: Count = 2, center: Number = 0.0, scale: Positive = 1.0) -> None:
        super().__init__()
        if observed < 1 or not scale > 0:
            raise ValueError(f"Gaussian needs observed >= 1, scale > 0; got {observed}, {scale}.")
        self.observed, self.center, self.scale = observed, center, scale
        self.mean = nn.Parameter(torch.full((observed,), float(center)))
        self.root = PyroParam(scale * torch.eye(observed), constraints.lower_cholesky)

    def density(self) -> MultivariateNormal:
        """The distribution at the present parameters: event (P,)."""
        return MultivariateNormal(self.mean, scale_tril=self.root)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        check_rows(x, self.observed, type(self).__name__)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.density(), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Reject rows with missing values. The parameters stay at their initial values.

        Raises:
            ValueError: with the first row that has a missing value.
        """
        check_rows(x, self.observed, type(self).__name__)
        check_complete(x, type(self).__name__)
