"""Draws without a path: every draw of the guide is held still, reparameterised or not.

For estimators that reach parameters by densities at fixed points only (wake-sleep,
thermodynamic): no gradient flows through a draw, and no second scoring is needed.
"""

from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor


class WithoutPath(Messenger):
    """Detach what the guide draws, before anyone sees it."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()
