"""Supports of the guide's sites that move with its parameters.

E_q ∇log q(z; φ) = 0 needs a support that does not depend on φ: for Uniform(0, φ) it is -1/φ. Score
functions, and estimators that differentiate densities at fixed draws, are biased there.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from ppl_lvm.core.autograd import leaves
from ppl_lvm.core.distributions import is_point, unwrap, unwrap_support
from ppl_lvm.particles.log_prob_tables import PairRun
from ppl_lvm.particles.structure import without_side_effects


def moving_support(run: PairRun, names: Iterable[str]) -> str | None:
    """The first of these sites whose support depends on parameters at fixed earlier draws."""
    with without_side_effects():
        sites, _ = run(None)
        bounded = [n for n in names if n in sites and any(True for _ in _bounds(sites[n]["fn"]))]
        if not bounded:
            return None
        with torch.enable_grad():
            sites, _ = run(None, values={n: s["value"] for n, s in sites.items()})
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
    total = bound[bound.isfinite()].sum()
    grads = torch.autograd.grad(total, leaves(bound), retain_graph=True, allow_unused=True)
    return any(g is not None and bool((g != 0).any()) for g in grads)
