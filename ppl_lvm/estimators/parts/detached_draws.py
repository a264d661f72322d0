"""Guide draws without pathwise gradient.

For estimators with gradients of densities at fixed values only (wake-sleep, thermodynamic): no
gradient passes through a draw, reparameterized or not, and no second scoring is needed. Points
(Delta sites) are functions of parameters and keep their gradient.
"""

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import is_point


class DetachDraws(Messenger):
    """Detach the guide's draws."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        known = msg["is_observed"] or msg["done"]  # all latents in the model
        if not known and not site_is_subsample(msg) and not is_point(msg["fn"]):
            self.pending.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.pending:
            self.pending.discard(msg["name"])
            if isinstance(msg["value"], Tensor):
                msg["value"] = msg["value"].detach()
