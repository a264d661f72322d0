"""Distributions: wrappers, supports, errors with the name of a site.

Some distributions have no sampler, no density, or no batches: pyro.distributions.LKJ cannot be
expanded over a plate, LinearHMM has no log_prob. The exception says so without the site, from
inside Pyro; `named_distribution_errors` adds it.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import (
    Delta,
    ExpandedDistribution,
    MaskedDistribution,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
    Unit,
    constraints,
)
from torch import Tensor

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.errors import ArgumentError
from ppl_lvm.core.frames import in_package, is_users, module_name, traceback_frames

WRAPPERS = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)
_STRAIGHT_THROUGH = (RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough)
_DISTRIBUTIONS = ("torch.distributions", "pyro.distributions")
_FAULTS = {
    "sample": "cannot be sampled",
    "rsample": "cannot be sampled",
    "expand": "cannot be expanded over a plate",
    "log_prob": "has no log_prob of this value",
}


def layers(fn: Any) -> Iterator[Any]:
    """A distribution and those inside it, outermost first, through transforms too."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)


def innermost(fn: Any) -> Any:
    """The distribution under all wrappers and transforms."""
    *_, last = layers(fn)
    return last


def elementary(fn: Any) -> Any:
    """The innermost distribution, in the batch shape that ExpandedDistribution gives it."""
    expanded = None
    for layer in layers(fn):
        if expanded is None and isinstance(layer, ExpandedDistribution):
            expanded = layer
    if expanded is None:
        return innermost(fn)
    base = expanded.base_dist.expand(expanded.batch_shape)
    return innermost(expanded) if isinstance(base, ExpandedDistribution) else innermost(base)


def with_innermost(fn: Any, replacement: Any) -> Any:
    """`fn` with `replacement`, of the same shape, under its dimensions and masks."""
    if not isinstance(fn, WRAPPERS):
        return replacement
    base = fn.base_dist
    if isinstance(fn, ExpandedDistribution):  # `elementary` has expanded the replacement
        expanded = base.expand(fn.batch_shape)
        base = base if isinstance(expanded, ExpandedDistribution) else expanded
    return _with_base(fn, with_innermost(base, replacement))


def unmasked(fn: Any) -> Any:
    """The distribution without masks on it or on one inside it; itself without any."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    base = getattr(fn, "base_dist", None)
    bare = unmasked(base) if base is not None else None
    return fn if bare is base else _with_base(fn, bare)


def _with_base(fn: Any, base: Any) -> Any:
    wrapper = copy.copy(fn)
    wrapper.base_dist = base
    return wrapper


@checked
def without_rsample(fn: Any) -> Any:
    """The distribution with draws that are not reparameterized.

    `fn.has_rsample_(False)` of Pyro fails on `.to_event(1)` and transformed distributions, and
    `.expand`, which every plate calls, forgets it.
    """
    if not isinstance(fn, torch.distributions.Distribution):
        raise ArgumentError(f"without_rsample: fn is a {type(fn).__name__}. Pass a distribution.")
    copied = copy.copy(fn)
    cls: Any = type(fn)
    copied.__class__ = _class_without_rsample(cls)
    return copied


@functools.cache
def _class_without_rsample(cls: Any) -> Any:
    return type(cls)(cls.__name__, (cls,), {"has_rsample": False, "__module__": cls.__module__})


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


def is_discrete(fn: Any) -> bool | None:
    """True for a discrete support; None for a point, a factor, or an unknown support."""
    if is_point(fn) or isinstance(innermost(fn), Unit):
        return None
    if getattr(fn, "has_enumerate_support", False):
        return True
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return None


def is_straight_through(fn: Any) -> bool:
    """True for a discrete draw whose gradient is that of a relaxed draw."""
    reparameterized = bool(getattr(fn, "has_rsample", False))
    return isinstance(unwrap(fn), _STRAIGHT_THROUGH) or (
        reparameterized and is_discrete(fn) is True
    )


def added_event_dims(fn: Any) -> int:
    """Number of dimensions that `.to_event` has added."""
    return sum(getattr(layer, "reinterpreted_batch_ndims", 0) for layer in layers(fn))


def is_masked_out(fn: Any) -> bool:
    """True if `.mask(False)` leaves nothing of the density."""
    masks = [layer._mask for layer in layers(fn) if hasattr(layer, "_mask")]
    return any(not mask.any() if isinstance(mask, Tensor) else not mask for mask in masks)


def same_masks(first: Any, second: Any) -> bool:
    """True if both distributions have no mask, or masks that are one tensor."""
    a, b = (
        [layer._mask for layer in layers(fn) if hasattr(layer, "_mask")] for fn in (first, second)
    )
    return len(a) == len(b) and all(map(_is_same, a, b))


def _is_same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is b
    views = [(t.data_ptr(), t.shape, t.stride()) for t in (a, b)]
    return a is b or views[0] == views[1]


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


@contextmanager
def named_distribution_errors() -> Iterator[None]:
    """A scope (or decorator) in which an error inside a site's distribution names the site.

    Raises:
        ValueError: in place of the error.
    """
    try:
        yield
    except Exception as error:
        fault = distribution_fault(error)
        if fault is None:
            raise
        raise ValueError(" ".join(fault[1:])) from error


def distribution_fault(error: Exception) -> tuple[str, str, str] | None:
    """(site, problem, remedy) of an error inside a site's distribution; None for other errors."""
    site: Any = None
    method: str | None = None
    for frame, _ in traceback_frames(error):
        if is_users(frame):
            site = method = None  # the program raised it, or built the distribution
        elif not in_package(module_name(frame), *_DISTRIBUTIONS):
            site = _site_of(frame.f_locals) or site
        elif method not in _FAULTS:
            method = frame.f_code.co_name
    if site is None or method is None:
        return None
    lines = str(error).splitlines()
    reason = ((lines[0] if lines else "") or type(error).__name__).rstrip(".")[:200]
    kind = family(site["fn"])
    fault = _FAULTS.get(method, f"fails in {method}")
    problem = f"Site {site['name']!r}: {kind} {fault} ({reason})."
    return site["name"], problem, "Use a distribution that supports it."


def invalid_values(error: ValueError) -> str | None:
    """The error of torch's validation without the tensor that it prints; None for other errors."""
    expected, separator, _ = str(error).partition(", but found invalid values")
    frames = list(traceback_frames(error))
    if not separator or not frames:
        return None
    names = frames[-1][0].f_locals
    value, valid = names.get("value"), names.get("valid")
    number = place = ""
    if isinstance(value, Tensor) and isinstance(valid, Tensor) and value.shape == valid.shape:
        index = tuple((~valid).nonzero()[0].tolist())
        number, place = f" is {value[index].item():g}", f" at {index}" if index else ""
    lines = [(f.f_code.co_filename, line) for f, line in frames if is_users(f)]
    where = f" ({lines[-1][0]}:{lines[-1][1]})" if lines else ""
    return (
        f"{expected}, but it{number or ' is not'}{place}{where}. Trace it back to a logarithm or a "
        "root of a number below zero, to 0/0, to a diverged parameter, or to NaN in the data."
    )


def _site_of(names: Any) -> Any:
    """The sample site that a frame of Pyro or of this package handles."""
    for key in ("msg", "initial_msg", "site", "node"):
        value = names.get(key)
        if isinstance(value, dict) and value.get("type") == "sample" and "fn" in value:
            return value
    return None
