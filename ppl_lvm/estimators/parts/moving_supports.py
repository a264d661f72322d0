"""Supports and points of the guide that parameters move.

E_q ∇log q(z; φ) = 0 needs a support that does not depend on φ: for Uniform(0, φ) it is -1/φ. Score
functions, and estimators that differentiate densities at fixed draws, are biased there.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from ppl_lvm.core.autograd import leaves
from ppl_lvm.core.distributions import innermost, is_point, unwrap, unwrap_support
from ppl_lvm.particles.log_prob_tables import PairRun
from ppl_lvm.particles.structure import PairStructure, without_side_effects


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


def moving_point(run: PairRun, structure: PairStructure) -> tuple[str, str] | None:
    """A point with a density that parameters change, and the auxiliary draw that it depends on.

    The point z = f(a; φ) with `log_density` -log |∂f/∂a| has the density q(a) |∂f/∂a|⁻¹ at
    a = f⁻¹(z; φ). Its derivative at fixed z is not that at fixed a.
    """
    with without_side_effects():
        sites, model = run(None)
        draws = {n: _leaf(s["value"]) for n, s in sites.items() if not is_point(s["fn"])}
        with torch.enable_grad():
            sites, _ = run(None, values=draws)
        names = {id(value): name for name, value in draws.items()}
        for name, site in sites.items():
            if not is_point(site["fn"]) or name in structure.constant:
                continue
            point = innermost(site["fn"])
            of_value, of_density = (
                {names.get(id(leaf), "") for leaf in leaves(torch.as_tensor(part))}
                for part in (point.v, point.log_density)
            )
            read = sorted(n for n in {*of_value, *of_density} - {""} if n not in model)
            if "" in of_density or ("" in of_value and read):
                return name, (read or [name])[0]
    return None


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


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
