"""One site's part of the bound without the noise of its draw: -KL(q || p), where that is valid."""

from collections.abc import Callable

from torch import Tensor
from torch.distributions import kl_divergence

from ppl_lvm.core.distributions import is_point
from ppl_lvm.particles.log_prob_tables import inside_scale
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import Sites, is_one, log_prob, plate_dim, table, temper


def closed_form(
    name: str, guide: Sites, model: Sites, plan: PairStructure, absorbed: bool
) -> Callable[[], Tensor | None]:
    """What computes E_q[s_p log p - s_q log q] of the site `name`, (K, B), or None.

    With scales s it is -s_q KL(q || p) + (s_p - s_q) log p. Averaging over this draw alone is
    valid if no site that precedes it in the model follows it in the guide: only then is p's
    distribution fixed before the draw. None where that is not so, where the two are masked
    differently, where torch knows no KL, or where the model's site is `absorbed` in a sum.
    """

    def compute() -> Tensor | None:
        if absorbed or name in plan.constant:
            return None
        order, in_model = list(guide), [n for n in model if n in guide]
        earlier = set(in_model[: in_model.index(name)])
        q, p = guide[name], model[name]
        # Pyro's automatic guides give a site the value of a pushed normal as a point mass,
        # `Delta(value, log_density)`, whose closed form forgets the density it stands for.
        if is_point(q["fn"]):
            return None
        if not earlier <= set(order[: order.index(name)]) or q["mask"] is not p["mask"]:
            return None
        try:
            kl = kl_divergence(q["fn"], p["fn"])
        except NotImplementedError:
            return None
        scale_q, scale_p = inside_scale(q, plan), inside_scale(p, plan)
        value = temper(-kl, scale_q, None)
        if not (is_one(scale_p) and is_one(scale_q)):
            value = value + (scale_p - scale_q) * log_prob(p)
        value = temper(value, 1.0, q["mask"])
        return table(value, plan.nesting, plate_dim(q, plan.data_plate))

    return compute
