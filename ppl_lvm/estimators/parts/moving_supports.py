"""Supports of the guide's sites that move with its parameters.

E_q ∇log q(z; φ) = 0 needs a support that does not depend on φ: for Uniform(0, φ) it is -1/φ. Score
functions, and estimators that differentiate densities at fixed draws, are biased there.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from ppl_lvm.core.distributions import is_point, unwrap, unwrap_support
from ppl_lvm.particles.structure import Program, without_side_effects
from ppl_lvm.particles.tracing import ReplayValues, trace_program


def moving_support(
    guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], names: Iterable[str]
) -> str | None:
    """The first of these sites whose support depends on parameters at fixed earlier draws."""
    with without_side_effects():
        sites = trace_program(guide, args, kwargs, particles=None, nesting=0)
        bounded = [n for n in names if n in sites and any(True for _ in _bounds(sites[n]["fn"]))]
        if not bounded:
            return None
        replay = ReplayValues({n: s["value"] for n, s in sites.items()}, recompute_points=True)
        with torch.enable_grad():
            sites = trace_program(guide, args, kwargs, particles=None, nesting=0, replay=replay)
            return next(
                (n for n in bounded if any(map(_moves, _bounds(sites[n]["fn"])))),
                None,
            )


def _bounds(fn: Any) -> Iterator[Tensor]:
    """Finite bounds of a support that is an interval or its image."""
    fn = unwrap(fn)
    if is_point(fn):
        return
    if isinstance(fn, TransformedDistribution):
        for bound in _bounds(fn.base_dist):
            try:
                for transform in fn.transforms:
                    bound = transform(bound)
            except (RuntimeError, ValueError, IndexError):  # a transform of whole vectors
                continue
            yield bound
        return
    try:
        support = unwrap_support(fn.support)
    except NotImplementedError:
        return
    shape = fn.batch_shape + fn.event_shape
    for value in (getattr(support, key, None) for key in ("lower_bound", "upper_bound")):
        if value is not None:
            yield torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(shape)


def _moves(bound: Tensor) -> bool:
    if not bound.requires_grad:
        return False
    leaves = [bound] if bound.grad_fn is None else list(variables(bound.grad_fn))
    total = bound[bound.isfinite()].sum()
    grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    return any(g is not None and bool((g != 0).any()) for g in grads)


def variables(start: Any) -> Iterator[Tensor]:
    """Leaves of a graph of derivatives."""
    stack, seen = [start], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        stack += [below for below, _ in node.next_functions]
