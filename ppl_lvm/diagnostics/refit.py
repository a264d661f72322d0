"""Refit a guide to other data under a fixed model.

VSBC needs this of guides that do not read the data. Refitting begins at the fitted guide.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Program
from ppl_lvm.programs.pair import ModelGuidePair

STEPS, LEARNING_RATE = 300, 0.03


def refit_guide(
    pair: ModelGuidePair, steps: int = STEPS, learning_rate: float = LEARNING_RATE
) -> Callable[..., Program]:
    """`refit(*batch) -> guide`: `steps` steps of Adam, the learning rate falling to zero.

    Raises:
        CannotSayError: the guide has no parameters that the model does not use.
    """

    def refit(*batch: Any) -> Program:
        copy = ModelGuidePair(pair.model, pair.guide, pair.objective)
        copy.materialize_parameters(*batch)
        copy.load_state(pair.state())
        with copy.scope():
            leaves = guide_leaves(copy, *batch)
            rows = len(batch[0])
            optimizer = torch.optim.Adam(leaves, lr=learning_rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for leaf in copy.unconstrained_parameters.values():
                leaf.requires_grad_(True)
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    copy.objective.loss_and_grads(copy.model, copy.guide, *batch)
                for leaf in leaves:
                    if leaf.grad is not None:
                        leaf.grad /= rows
                optimizer.step()
                schedule.step()

        def guide(*args: Any) -> Any:
            with copy.scope():
                return copy.guide(*args)

        return guide

    return refit


def guide_leaves(pair: ModelGuidePair, *batch: Any) -> list[torch.Tensor]:
    """The parameters that the guide uses and the model does not."""
    stored = []
    for program in (pair.guide, pair.model):
        with torch.no_grad(), preserve_rng(), poutine.block():
            trace = poutine.trace(program).get_trace(*batch)
        stored.append({f"store/{name}" for name in trace.param_nodes})
    leaves = [
        leaf
        for name, leaf in pair.unconstrained_parameters.items()
        if name.startswith("guide/") or name in stored[0] - stored[1]
    ]
    if not leaves:
        raise CannotSayError("The guide has no parameters to refit.", verdict="not applicable")
    return leaves
