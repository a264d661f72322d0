"""β in E[log p(x | z)] - β KL(q ‖ p), as a handler around model and guide."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from ppl_lvm.particles.bound_estimate import MARK
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites, plate_nesting


class KLWeight(Messenger):
    """Scale latent sites of model and guide by `value`.

    Sites in `summed` (enumerated out of the model) have no KL term and are left alone.
    """

    def __init__(self, summed: frozenset[str]) -> None:
        super().__init__()
        self.value = torch.ones(())  # a tensor: a captured step reads it anew
        self.summed = summed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"] and msg["infer"].get(MARK):
            raise ValueError(
                f"A KL weight scales latent sites, but {msg['name']!r} scores what the latents "
                "cost in one factor. Leave kl_weight and kl_annealing out."
            )
        if not msg["is_observed"] and msg["name"] not in self.summed:
            msg["scale"] = msg["scale"] * self.value


def refuse_summed_parents(pair: ModelGuidePair, summed: frozenset[str], *batch: Any) -> None:
    """Refuse a latent z that is weighted while what it depends on is summed out.

    In log Σ_c p(c) p(z | c) p(x | z, c) there is no factor of z alone that β could weight.

    Raises:
        ValueError: names z, c and the remedy.
    """
    if not summed:
        return
    with pair.scope(), dry_run(pair.model, pair.guide), torch.no_grad(), poutine.block():
        drawn = poutine.trace(pair.guide).get_trace(*batch)
        model = poutine.replay(pair.model, drawn)
        first = -1 - plate_nesting(poutine.trace(model).get_trace(*batch))
        nodes = (
            poutine.trace(poutine.enum(model, first_available_dim=first)).get_trace(*batch).nodes
        )
    for name in latent_sites(drawn).keys() & nodes.keys():
        shape = nodes[name]["fn"].batch_shape
        for parent in sorted(summed):
            dim = nodes[parent]["infer"].get("_enumerate_dim")
            if dim is not None and -dim <= len(shape) and shape[dim] > 1:
                raise ValueError(
                    f"A KL weight cannot scale {name!r} by itself: it depends on {parent!r}, which "
                    "is summed out, and a sum has one scale. Leave kl_weight and kl_annealing "
                    f"out, or sample {parent!r} in the guide too."
                )
