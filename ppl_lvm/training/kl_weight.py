"""KL weight β.

The weighted bound is E_q[log p(x | z)] - β KL(q ‖ p).
"""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from ppl_lvm.particles.bound_estimate import MARK
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites, plate_nesting


class KLWeight(Messenger):
    """Handler that scales the latent sites of model and guide by `value`.

    Sites in `summed` (summed out of the model) have no KL term and keep their scale.
    """

    def __init__(self, summed: frozenset[str]) -> None:
        super().__init__()
        self.value = torch.ones(())  # a tensor: a captured step reads its present value
        self.summed = summed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"] and msg["infer"].get(MARK):
            raise ValueError(
                f"A KL weight scales latent sites, but {msg['name']!r} has the KL term of the "
                "latents in one factor. Leave kl_weight and kl_annealing out."
            )
        if not msg["is_observed"] and msg["name"] not in self.summed:
            msg["scale"] = msg["scale"] * self.value


def refuse_summed_parents(pair: ModelGuidePair, summed: frozenset[str], *batch: Any) -> None:
    """Refuse a weighted latent z whose parent c is summed out.

    log Σ_c p(c) p(z | c) p(x | z, c) has no factor of z alone that β could weight.

    Raises:
        ValueError: a latent has such a parent.
    """
    if not summed:
        return
    with pair.scope(), dry_run(pair.model, pair.guide), torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model = poutine.replay(pair.model, guide_trace)
        first = -1 - plate_nesting(poutine.trace(model).get_trace(*batch))
        nodes = (
            poutine.trace(poutine.enum(model, first_available_dim=first)).get_trace(*batch).nodes
        )
    for name in [n for n in latent_sites(guide_trace) if n in nodes]:
        factors = [nodes[name][key] for key in ("mask", "scale")]
        shapes = [factor.shape for factor in factors if isinstance(factor, torch.Tensor)]
        shape = torch.broadcast_shapes(nodes[name]["fn"].batch_shape, *shapes)
        for parent in sorted(summed):
            dim = nodes[parent]["infer"].get("_enumerate_dim")
            if dim is not None and -dim <= len(shape) and shape[dim] > 1:
                raise ValueError(
                    f"A KL weight cannot scale {name!r} by itself: it depends on {parent!r}, which "
                    "is summed out, and a sum has one scale. Leave kl_weight and kl_annealing "
                    f"out, or sample {parent!r} in the guide too."
                )
