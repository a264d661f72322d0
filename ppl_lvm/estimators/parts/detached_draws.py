"""Draws without a path: every draw of the guide is held still, reparameterised or not.

Points (Delta sites) are no draws but functions of parameters, and keep their gradient.

For estimators that reach parameters by densities at fixed points only (wake-sleep,
thermodynamic): no gradient flows through a draw, and no second scoring is needed.
"""

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import is_point


class DetachDraws(Messenger):
    """Detach what the guide draws, before anyone sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.drawing: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["is_observed"] or msg["done"]  # as all latents are in the model
        if not given and not site_is_subsample(msg) and not is_point(msg["fn"]):
            self.drawing.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.drawing:
            self.drawing.discard(msg["name"])
            if isinstance(msg["value"], Tensor):
                msg["value"] = msg["value"].detach()
