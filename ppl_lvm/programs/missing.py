"""Missing values (NaN) in what a model observes: left out of its density, exactly.

    likelihood, value = without_missing(Normal(loc, scale), x)
    pyro.sample("x", likelihood.to_event(1), obs=value)

A row's density is then that of its known entries,

    log p(x_known | z) = Σ_{p known} log p(x_p | z),

which for entries independent given z is the marginal over the missing ones. A mask alone is not
enough: behind it a NaN, or a value at the edge of the support, has a gradient that is NaN, and
zero times NaN is NaN. So the gaps are filled with a value inside the support, which the mask then
takes out again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to


def without_missing(fn: Any, x: Tensor) -> tuple[Any, Tensor]:
    """The likelihood masked where `x` is NaN, and `x` with its gaps filled.

    Args:
        fn: a distribution of single numbers, whose batch shape broadcasts to that of `x`; put
            `.to_event` behind it, not before.
        x: values, NaN where one is missing.

    Raises:
        ValueError: for a distribution of whole events, whose entries cannot be taken out singly.
    """
    if fn.event_dim:
        raise ValueError(
            f"{type(fn).__name__} has events of shape {tuple(fn.event_shape)}, whose entries "
            "cannot be left out one by one. Give it before .to_event(...); for entries that depend "
            "on each other, see how models/parts/mixture_missing.py takes the marginal."
        )
    missing = x.isnan()
    shape = torch.broadcast_shapes(fn.batch_shape, x.shape)
    return fn.expand(shape).mask(~missing), x.where(~missing, _inside(fn.support, x))


def _inside(support: Any, x: Tensor) -> Tensor:
    """Values of the shape of `x` within a support, off its edges where it is continuous."""
    nothing = torch.zeros_like(x)
    if not support.is_discrete:
        return biject_to(support)(nothing).expand(x.shape).detach()
    return nothing + getattr(support, "lower_bound", 0)
