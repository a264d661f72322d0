"""Normal distributions on a site's support, and the site's plates.

With u ~ N(loc, scale²) on the unconstrained space and T the bijection from there onto the support,
T(u) has density N(u; loc, scale²) / |det ∂T/∂u|. On the real line T is the identity.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import Normal, TransformedDistribution, constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint

from ppl_lvm.authoring import Plate, Signature, Site
from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.nn.units import RealInUnits


class TransformedNormal:
    """Normal distributions on the support of `site`, with unconstrained parameters.

    Attributes:
        shape: shape of the unconstrained event; a simplex of 3 has (2,).

    Raises:
        ValueError: if the site is discrete, its support differs between rows, or no bijection
            onto it is known.
    """

    def __init__(self, site: Site) -> None:
        require_density_of_draws(site)
        if site.discrete:
            raise ValueError(
                f"Site {site.name!r}: it is discrete, so no normal can be mapped to its support. "
                "Use AmortizedCategorical or AmortizedJoint."
            )
        support = _row_support(site.support, len(site.event_shape), site.name)
        self._support = support
        try:
            self._transform = biject_to(support)
        except NotImplementedError:
            raise ValueError(
                f"Site {site.name!r}: no bijection onto its support {support} is known. "
                "Write its guide by hand."
            ) from None
        self._real = type(unwrap_support(support)) is type(constraints.real)  # not in units
        self.shape = torch.Size(self._transform.inverse_shape(site.event_shape))

    def __call__(self, loc: Tensor, scale: Tensor) -> Any:
        """Distribution with `loc` and `scale` (..., *shape)."""
        line = unwrap_support(self._support)
        if isinstance(line, RealInUnits):  # a normal again
            loc, scale = line.center + line.unit * loc, line.unit * scale
            return Normal(loc, scale).to_event(len(self.shape))
        return self.apply(Normal(loc, scale).to_event(len(self.shape)))

    def apply(self, base: Any) -> Any:
        """`base`, a distribution of unconstrained events, on the support.

        A value that it drew is scored at the unconstrained value it came from. This is exact where
        T saturates, and avoids the inversion of a flow.
        """
        return base if self._real else TransformedDistribution(base, [self._transform.with_cache()])

    def constrain(self, unconstrained: Tensor) -> tuple[Tensor, Tensor | None]:
        """T(u) and log |det ∂T/∂u| per event; None where T is the identity."""
        if self._real:
            return unconstrained, None
        value = self._transform(unconstrained)
        return value, self._transform.log_abs_det_jacobian(unconstrained, value)

    def unconstrain(self, value: Tensor) -> Tensor:
        """T⁻¹ of a value in the support."""
        inverse: Tensor = self._transform.inv(value)
        return inverse


def require_density_of_draws(site: Site) -> None:
    """Refuse sites without a value, and priors whose density is not that of their draws.

    Raises:
        ValueError: with the site and the remedy.
    """
    if site.distribution == "Unit":
        raise ValueError(
            f"Site {site.name!r} ~ Unit: it has no value that a guide could draw. Write "
            f"pyro.factor({site.name!r}, log_factor), which observes it."
        )
    if site.distribution.startswith("Relaxed") and site.distribution.endswith("StraightThrough"):
        relaxed = site.distribution.removesuffix("StraightThrough")
        raise ValueError(
            f"Site {site.name!r} ~ {site.distribution}: no guide can be chosen: its draws are "
            f"discrete and its density is that of relaxed ones. Use dist.{relaxed}, or "
            f"dist.{relaxed.removeprefix('Relaxed')} with a discrete guide."
        )


def open_plates(sites: list[Site], signature: Signature, batch: tuple[Any, ...]) -> dict[str, Any]:
    """One object for each plate of `sites`; that over rows has the rows of the batch.

    One with a `subsample_size` draws its subsample here; the model receives the same.
    """
    plates = {}
    for name in dict.fromkeys(name for site in sites for name in site.plates):
        plate = signature.plate(name)
        if plate.over_rows and plate.full_size != plate.size:
            plates[name] = pyro.plate(name, plate.full_size, plate.size, dim=plate.dim)
            continue
        size = len(batch[0]) if plate.over_rows else plate.size
        plates[name] = pyro.plate(name, size, dim=plate.dim)
    return plates


def subsamples(signature: Signature) -> bool:
    """True if the plate over rows has a `subsample_size`."""
    plate = signature.row_plate
    return plate is not None and plate.full_size != plate.size


def row_plate(signature: Signature) -> Plate:
    """The plate over rows, of a model with local sites."""
    plate = signature.row_plate
    assert plate is not None
    return plate


@contextmanager
def enter_plates(site: Site, plates: dict[str, Any]) -> Iterator[None]:
    """Enter the plates of `site`, outermost first."""
    with ExitStack() as stack:
        for name in site.plates:
            stack.enter_context(plates[name])
        yield


def enumerated(site: Site) -> bool:
    """True if the model marks the site for parallel enumeration."""
    return site.enumerate == "parallel" and site.values is not None


def require_plain_plates(site: Site, signature: Signature) -> None:
    """Refuse sites whose batch shape a guide cannot rebuild from plates.

    Raises:
        ValueError: for sequential plates, or batch dimensions that no plate declares, except to
            the right of one.
    """
    dims = {signature.plate(name).dim for name in site.plates}
    for name in site.plates:
        if signature.plate(name).dim is None:
            raise ValueError(
                f"Site {site.name!r}: its plate {name!r} is sequential. Use a vectorized "
                f"one: with pyro.plate({name!r}, ..., dim=-1)."
            )
    leftmost = min((dim for dim in dims if dim is not None), default=0)
    for i, size in enumerate(site.batch_shape):
        dim = i - len(site.batch_shape)
        if size > 1 and dim not in dims and dim < leftmost:
            raise ValueError(
                f"Site {site.name!r}: it has {size} values at batch dimension {dim}, which no "
                "plate declares. Put it in a plate, or make the dimension part of the event with "
                ".to_event(1)."
            )


def _row_support(support: Any, event_dim: int, name: str) -> Any:
    """The support of one row: its bounds have the event's dimensions only."""
    if isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    support = copy.copy(support)
    if isinstance(support, constraints.independent):
        support.base_constraint = _row_support(support.base_constraint, event_dim, name)
    for bound in ("lower_bound", "upper_bound"):
        value = getattr(support, bound, None)
        if isinstance(value, Tensor) and value.dim() > event_dim:
            rows = value.reshape(-1, *value.shape[value.dim() - event_dim :])
            if not (rows == rows[0]).all():
                raise ValueError(
                    f"Site {name!r}: its support differs between rows. Let the model sample it on "
                    "a fixed support and scale it afterwards."
                )
            setattr(support, bound, rows[0])
    return _without_infinite_bounds(support)


def _without_infinite_bounds(support: Any) -> Any:
    """The interval (a, ∞) as a half-line: its bijection would be infinite."""
    if not isinstance(support, constraints.interval):
        return support
    low, high = (torch.as_tensor(b) for b in (support.lower_bound, support.upper_bound))
    if low.isneginf().all() and high.isposinf().all():
        return constraints.real
    if high.isposinf().all():
        return constraints.greater_than(support.lower_bound)
    return constraints.less_than(support.upper_bound) if low.isneginf().all() else support
