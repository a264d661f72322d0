"""Closed-form KL divergence -KL(q || p) of one site."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import HalfCauchy, HalfNormal, kl_divergence

from ppl_lvm.core.distributions import is_point, layers, same_masks
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import (
    Sites,
    inside_scale,
    is_one,
    log_prob,
    plate_dim,
    table,
    temper,
)


def closed_form(
    name: str, guide: Sites, model: Sites, structure: PairStructure, absorbed: bool
) -> Callable[[], Tensor | None]:
    """A function that computes E_q[s_p log p - s_q log q] of the site `name`, (K, B), or None.

    With scales s the value is -s_q KL(q || p) + (s_p - s_q) log p. Averaging over this draw alone
    is valid if no site that precedes it in the model follows it in the guide: then p's
    distribution is fixed before the draw. The function returns None if this condition fails, if
    the two sites have different masks, if torch has no closed form, or if the model's site is
    `absorbed` in a sum over enumerated values.
    """

    def compute() -> Tensor | None:
        if absorbed or structure.expected or name in structure.constant:
            return None
        order, in_model = list(guide), [n for n in model if n in guide]
        earlier = set(in_model[: in_model.index(name)])
        q, p = guide[name], model[name]
        # Pyro's automatic guides represent a transformed normal as a point mass,
        # `Delta(value, log_density)`; the closed form would omit log_density.
        if is_point(q["fn"]):
            return None
        if not earlier <= set(order[: order.index(name)]) or q["mask"] is not p["mask"]:
            return None
        # The KL of two masked distributions covers the common part of their masks only.
        if not same_masks(q["fn"], p["fn"]) or _folds(q["fn"]) or _folds(p["fn"]):
            return None
        try:
            kl = kl_divergence(q["fn"], p["fn"])
        except NotImplementedError:
            return None
        scale_q, scale_p = (inside_scale(s, structure.data_plate) for s in (q, p))
        value = temper(-kl, scale_q, None)
        if not (is_one(scale_p) and is_one(scale_q)):
            value = value + (scale_p - scale_q) * log_prob(p)
        value = temper(value, 1.0, q["mask"])
        return table(value, structure.nesting, plate_dim(q, structure.data_plate))

    return compute


def _folds(fn: Any) -> bool:
    """True for a transform that is no bijection: it changes the KL, which torch leaves as it is."""
    transforms = [
        t
        for layer in layers(fn)
        if not isinstance(layer, HalfCauchy | HalfNormal)  # symmetric: |X| has the KL of X
        for t in getattr(layer, "transforms", ())
    ]
    return any(not t.bijective for t in transforms)
