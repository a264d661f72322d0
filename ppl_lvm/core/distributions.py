"""TODO."""

from typing import Any

from pyro.distributions import Delta


def innermost(fn: Any) -> Any:
    """The distribution under wrappers that add dimensions, masks or expansion."""
    while hasattr(fn, "base_dist") and not isinstance(fn, Delta):
        fn = fn.base_dist
    return fn


def family(fn: Any) -> str:
    """The distribution's own name, under the wrappers that add dimensions, masks or expansion."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def is_point(fn: Any) -> bool:
    """Whether a distribution is a Delta, possibly wrapped."""
    return isinstance(innermost(fn), Delta)
