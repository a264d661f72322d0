"""Multivariate normal distribution without latents.

x_n ~ N(μ, L Lᵀ)    observed    (N, P),  L lower triangular with a positive diagonal
"""

from functools import partial

import pyro
import torch
from pyro.distributions import MultivariateNormal, constraints
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.core.validate import Count, Number, Positive
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import check_complete
from ppl_lvm.nn.lazy import check_rows
from ppl_lvm.nn.units import ColumnUnits


class Gaussian(PyroModule):
    """N(μ, L Lᵀ).

    Args:
        observed: P.
        center: initial value of the entries of μ; None: the columns' means in the data.
        scale: initial standard deviation; None: the columns' standard deviations.

    Raises:
        ValueError: for no columns, or a scale that is not positive.
    """

    example_batch = staticmethod(partial(example_rows, columns=2))

    def __init__(
        self, observed: Count = 2, center: Number | None = None, scale: Positive | None = None
    ) -> None:
        super().__init__()
        if observed < 1 or (scale is not None and not scale > 0):
            raise ValueError(f"Gaussian needs observed >= 1, scale > 0; got {observed}, {scale}.")
        self.observed, self.center, self.scale = observed, center, scale
        self.units = ColumnUnits(observed)
        self.mean = self.units.location(torch.full((observed,), float(center or 0.0)))
        root = (scale or 1.0) * torch.eye(observed)
        self.root = self.units.rows(root, constraints.lower_cholesky)

    def density(self) -> MultivariateNormal:
        """The distribution at the present parameters: event (P,)."""
        return MultivariateNormal(self.mean, scale_tril=self.root)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        check_rows(x, self.observed, type(self).__name__)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.density(), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Take the columns' units from rows `x`, and initial values that were not given.

        Raises:
            ValueError: with the first row that has a missing value.
        """
        check_rows(x, self.observed, type(self).__name__)
        check_complete(x, type(self).__name__)
        mean, root = self.mean.detach(), self.root.detach()
        self.units.set_from(x)
        self.mean = self.units.center if self.center is None else mean
        self.root = self.units.scale.diag() if self.scale is None else root
