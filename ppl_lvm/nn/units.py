"""Parameters and latents in the units of the data.

    x = m + s ⊙ u,    θ = m + s ⊙ v for locations,    θ = s ⊙ v for scales and loadings

with m and s the columns' means and standard deviations. A parameter's value θ is in the units of x,
and an optimizer sees v alone (for positive values log v): the unconstrained coordinate of a
`PyroParam` whose constraint is `InUnits`. So a fit to a ⊙ x + b takes the steps of a fit to x, and
its bound differs by the constant -Σ_p log |a_p|. `NormalInUnits` does the same for a latent.

Example:
    >>> from pyro.nn import PyroModule
    >>> model = PyroModule()
    >>> model.units = ColumnUnits(2)
    >>> model.mu = model.units.location(torch.zeros(2))
    >>> model.units.set_from(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
    >>> model.mu = torch.tensor([2.0, 20.0])
    >>> model.mu_unconstrained.tolist()
    [1.0, 0.0]
"""

from typing import Any

import torch
from pyro.distributions import Normal, constraints
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import biject_to, transform_to
from torch.distributions.transforms import AffineTransform, ComposeTransform

from ppl_lvm.core.validate import Whole


class ColumnUnits(nn.Module):
    """m and s of P columns, 0 and 1 before `set_from`.

    Args:
        columns: P.
        common: True for models with one noise variance for all columns: `spread`, `variance` and
            `standardize` then have one unit, the root mean square of s. Locations and rows keep s.
        like: dtype and device.
    """

    center: Tensor  # m (P,)
    scale: Tensor  # s (P,)

    def __init__(self, columns: Whole, *, common: bool = False, **like: Any) -> None:
        super().__init__()
        self.common = common
        self.register_buffer("center", torch.zeros(columns, **like))
        self.register_buffer("scale", torch.ones(columns, **like))

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        """Take m and s from rows `x` (..., P), NaN where a value is missing."""
        center, scale = column_units(x)
        self.center.copy_(center)
        self.scale.copy_(scale)

    @property
    def variance(self) -> Tensor:
        """s² (P,), or its mean () if common."""
        square = self.scale.square()
        return square.mean() if self.common else square

    def standardize(self, x: Tensor) -> Tensor:
        """u of `x` (..., P), in its precision."""
        return (x - self.center.to(x)) / self.variance.sqrt().to(x)

    def restore(self, u: Tensor) -> Tensor:
        """x of `u` (..., P), in its precision."""
        return self.center.to(u) + self.variance.sqrt().to(u) * u

    def location(self, value: Tensor) -> Any:
        """A parameter m + s ⊙ v (..., P), initially `value`."""
        return PyroParam(value, InUnits(self, constraints.real, "location"))

    def spread(self, value: Tensor, constraint: Any = constraints.positive) -> Any:
        """A parameter s ⊙ v (..., P), or of any shape if common; v has `constraint`."""
        return PyroParam(value, InUnits(self, constraint, "spread"))

    def rows(self, value: Tensor, constraint: Any = constraints.real) -> Any:
        """A parameter with a row for every column, (..., P, D): s_p v_p."""
        return PyroParam(value, InUnits(self, constraint, "rows"))


def is_binary(x: Tensor) -> bool:
    """True if all values that are present are 0 or 1."""
    return bool(((x == 0) | (x == 1) | x.isnan()).all())


def column_units(
    x: Tensor, *, common: bool = False, constant: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (P,) of the columns of `x` (..., P), in doubles.

    NaN are left out.

    Args:
        x: rows.
        common: True for the root mean square of the standard deviations in place of all.
        constant: what a column has that varies by no more than rounding: this root mean square
            ("mean"), or the largest standard deviation ("largest"); 1 if none varies.
    """
    eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    rows = x.detach().flatten(0, -2).double()
    center = rows.nanmean(0).nan_to_num()
    variance = (rows - center).square().nanmean(0).nan_to_num()
    rounding = (4 * eps) ** 2 * rows.square().nanmean(0).nan_to_num()
    varies = variance > rounding
    variance = torch.where(varies, variance, 0.0)
    shared = (variance.amax() if constant == "largest" else variance.mean()).sqrt()
    shared = torch.where(shared > 0, shared, 1.0).expand_as(center)
    return center, shared if common else torch.where(varies, variance.sqrt(), shared)


class InUnits(constraints.Constraint):
    """Values of `base` in the units of columns; `form` as the methods of `ColumnUnits`.

    It reads `units.center` and `units.scale` wherever it is used, so that they may change, move or
    be loaded.
    """

    def __init__(self, units: Any, base: Any, form: str) -> None:
        self.units, self.base, self.form = units, base, form
        super().__init__()

    @property
    def event_dim(self) -> int:
        result: int = self.base.event_dim
        return result

    @property
    def affine(self) -> AffineTransform:
        """v -> θ."""
        units = self.units
        if self.form == "location":
            return AffineTransform(units.center, units.scale)
        scale = units.scale[:, None] if self.form == "rows" else units.variance.sqrt()
        return AffineTransform(0.0, scale, self.event_dim)

    def check(self, value: Tensor) -> Tensor:
        """True for values of `base` in these units."""
        result: Tensor = self.base.check(self.affine.inv(value))
        return result

    def __repr__(self) -> str:
        return repr(self.base)


@transform_to.register(InUnits)
def _transform_to_units(constraint: InUnits) -> Any:
    if constraint.base is constraints.real:
        return constraint.affine
    return ComposeTransform([transform_to(constraint.base), constraint.affine])


class RealInUnits(type(constraints.real)):  # type: ignore[misc]
    """The real line, with the bijection v -> center + unit v.

    Args:
        center, unit: tensors that broadcast with the values.
    """

    def __init__(self, center: Tensor, unit: Tensor) -> None:
        self.center, self.unit = center, unit
        super().__init__()


@biject_to.register(RealInUnits)
@transform_to.register(RealInUnits)
def _transform_to_real(constraint: RealInUnits) -> Any:
    return AffineTransform(constraint.center, constraint.unit)


class NormalInUnits(Normal):
    """N(loc, scale²) of a latent whose unconstrained coordinate is (z - loc) / scale.

    Guides and methods that work in unconstrained coordinates then see the prior as N(0, 1).
    """

    @property
    def support(self) -> Any:
        return RealInUnits(self.loc, self.scale)
