"""A normal distribution pushed onto a site's support, and the plates it stands in.

With u ~ N(loc, scale²) on the whole space and T the bijection from there onto the support,
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

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature, Site


class TransformedNormal:
    """Makes normals on the support of `site`, for parameters of the unconstrained shape.

    Attributes:
        shape: of the unconstrained event; a simplex of 3 has (2,).

    Raises:
        ValueError: if the site is discrete, its support differs from datum to datum, or no
            bijection onto it is known.
    """

    def __init__(self, site: Site) -> None:
        if site.discrete:
            raise ValueError(f"Site {site.name!r} is discrete: no normal can be pushed onto it.")
        support = _shared(site.support, len(site.event_shape), site.name)
        try:
            self._transform = biject_to(support)
        except NotImplementedError:
            raise ValueError(
                f"Site {site.name!r} has support {support}, onto which no bijection is known. "
                "Write its guide by hand."
            ) from None
        self._real = _is_real(support)
        self.shape = torch.Size(self._transform.inverse_shape(site.event_shape))

    def __call__(self, loc: Tensor, scale: Tensor) -> Any:
        """The distribution with `loc` and `scale` (..., *shape)."""
        return self.push(Normal(loc, scale).to_event(len(self.shape)))

    def push(self, base: Any) -> Any:
        """`base`, a distribution of unconstrained events, on the support.

        A value that it drew is scored at the unconstrained value it came from, which is exact
        where T saturates, and saves inverting a flow.
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


def open_plates(sites: list[Site], signature: Signature, rows: int) -> dict[str, Any]:
    """The plates that `sites` stand in, each made once; the plate "data" has `rows`.

    A plate "data" that draws a sub-sample of its own does so here; the model is given the same.
    """
    plates = {}
    for name in dict.fromkeys(name for site in sites for name in site.plates):
        plate = signature.plate(name)
        if name == DATA_PLATE and subsamples(signature):
            plates[name] = pyro.plate(name, plate.full_size, plate.size, dim=plate.dim)
            continue
        size = rows if name == DATA_PLATE else plate.size
        plates[name] = pyro.plate(name, size, dim=plate.dim)
    return plates


def subsamples(signature: Signature) -> bool:
    """Whether the plate "data" draws a sub-sample of its own (`subsample_size`)."""
    plate = signature.plate(DATA_PLATE)
    return plate.full_size != plate.size


@contextmanager
def enter_plates(site: Site, plates: dict[str, Any]) -> Iterator[None]:
    """Inside the plates of `site`, outermost first."""
    with ExitStack() as stack:
        for name in site.plates:
            stack.enter_context(plates[name])
        yield


def enumerated(site: Site) -> bool:
    """Whether the model asks for the site to be summed out in parallel."""
    return site.enumerate == "parallel" and site.values is not None


def require_plain_plates(site: Site, signature: Signature) -> None:
    """Refuse sites whose batch shape a guide cannot rebuild from plates.

    Raises:
        ValueError: for sequential plates, or batch dimensions that no plate declares.
    """
    dims = {signature.plate(name).dim for name in site.plates}
    for name in site.plates:
        if signature.plate(name).dim is None:
            raise ValueError(
                f"Site {site.name!r} stands in the sequential plate {name!r}. Use a vectorised "
                f"one: with pyro.plate({name!r}, ..., dim=-1)."
            )
    for i, size in enumerate(site.batch_shape):
        dim = i - len(site.batch_shape)
        if size > 1 and dim not in dims:
            raise ValueError(
                f"Site {site.name!r} has {size} values at batch dimension {dim}, which no plate "
                "declares. Put it in a plate, or make the dimension part of the event with "
                ".to_event(1)."
            )


def _is_real(support: Any) -> bool:
    return isinstance(unwrap_support(support), type(constraints.real))


def _shared(support: Any, event_dim: int, name: str) -> Any:
    """The support with bounds of the event's dimensions only: the same for every datum."""
    support = copy.copy(support)
    if isinstance(support, constraints.independent):
        support.base_constraint = _shared(support.base_constraint, event_dim, name)
    for bound in ("lower_bound", "upper_bound"):
        value = getattr(support, bound, None)
        if isinstance(value, Tensor) and value.dim() > event_dim:
            rows = value.reshape(-1, *value.shape[value.dim() - event_dim :])
            if not (rows == rows[0]).all():
                raise ValueError(
                    f"Site {name!r} has a support that differs from datum to datum. Let the "
                    "model sample it on a fixed support and scale it afterwards."
                )
            setattr(support, bound, rows[0])
    return support
