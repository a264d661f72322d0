"""Distributions and supports without their wrappers."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution, constraints
from torch import Tensor

WRAPPERS = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)


def layers(fn: Any) -> Iterator[Any]:
    """A distribution and those inside it, outermost first, through transforms too."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)


def innermost(fn: Any) -> Any:
    """The distribution under all wrappers and transforms."""
    *_, last = layers(fn)
    return last


def unwrap(fn: Any) -> Any:
    """The distribution under wrappers that add dimensions, masks or expansion."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def family(fn: Any) -> str:
    """Name of the distribution under wrappers that add dimensions, masks or expansion."""
    return type(unwrap(fn)).__name__


def is_point(fn: Any) -> bool:
    """True for a Delta, possibly wrapped."""
    return isinstance(innermost(fn), Delta)


def added_event_dims(fn: Any) -> int:
    """Number of dimensions that `.to_event` has added."""
    return sum(getattr(layer, "reinterpreted_batch_ndims", 0) for layer in layers(fn))


def own_masks(fn: Any) -> Iterator[Tensor]:
    """Boolean masks that `.mask(...)` has put on a distribution or on one inside it."""
    for layer in layers(fn):
        mask = getattr(layer, "_mask", None)
        if isinstance(mask, Tensor):
            yield mask.bool()


def unwrap_support(support: Any) -> Any:
    """The constraint of single values under `constraints.independent`."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
