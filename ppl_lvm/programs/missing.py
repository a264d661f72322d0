"""Missing values (NaN) of observed sites, excluded exactly.

    likelihood, value = without_missing(Normal(loc, scale), x)
    pyro.sample("x", likelihood.to_event(1), obs=value)

The density of a row is then that of its known entries,

    log p(x_known | z) = Σ_{p known} log p(x_p | z),

which for entries independent given z is the marginal over the missing ones. A mask alone is not
enough: a NaN behind it, or a value at the edge of the support, has a gradient that is NaN, and zero
times NaN is NaN. So missing entries are replaced by a value inside the support, and then masked.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.errors import ArgumentError


@checked
def without_missing(fn: Any, x: Tensor) -> tuple[Any, Tensor]:
    """The likelihood masked where `x` is NaN, and `x` with missing entries replaced.

    Args:
        fn: a distribution of scalars, whose batch shape broadcasts to that of `x`; call
            `.to_event` on the result.
        x: values, NaN where one is missing.

    Raises:
        ValueError: for a distribution of events, whose entries cannot be masked one by one.
    """
    if not isinstance(fn, Distribution):
        raise ArgumentError(f"without_missing: fn is a {type(fn).__name__}. Pass a Distribution.")
    if fn.event_shape:
        raise ValueError(
            f"{type(fn).__name__}: its events of shape {tuple(fn.event_shape)} cannot be masked "
            "entry by entry. Pass it before .to_event(...); for dependent entries, take the "
            "marginal, as the Gaussian mixtures in ppl_lvm.models do."
        )
    missing = x.isnan()
    shape = torch.broadcast_shapes(fn.batch_shape, x.shape)
    return fn.expand(shape).mask(~missing), x.where(~missing, _interior(fn.support, x))


def _interior(support: Any, x: Tensor) -> Tensor:
    """Values of the shape of `x` in a support, off its edges where it is continuous."""
    zeros = torch.zeros_like(x)
    if not support.is_discrete:
        return biject_to(support)(zeros).expand(x.shape).detach()
    return zeros + getattr(support, "lower_bound", 0)
