"""β in E[log p(x | z)] - β KL(q ‖ p), as a handler around model and guide."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from ppl_lvm.particles.estimate import MARK


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
