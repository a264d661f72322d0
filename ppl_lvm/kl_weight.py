"""β in E[log p(x | z)] - β KL(q ‖ p), as a handler around model and guide."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger


class KLWeight(Messenger):
    """Scale latent sites of model and guide by `value`.

    Sites in `summed` (enumerated out of the model) have no KL term and are left alone.
    """

    def __init__(self, summed: frozenset[str]) -> None:
        super().__init__()
        self.value = torch.ones(())  # a tensor: a captured step reads it anew
        self.summed = summed

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] not in self.summed:
            msg["scale"] = msg["scale"] * self.value
