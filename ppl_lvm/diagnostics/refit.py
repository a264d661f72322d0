"""Fit a pair's guide anew to other data, its model held: what VSBC needs of a guide that does not
read the data. Starts where the fitted guide stands.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.particles.structure import Program
from ppl_lvm.programs.pair import ModelGuidePair

STEPS, LEARNING_RATE = 300, 0.03


def refitting(
    pair: ModelGuidePair, steps: int = STEPS, learning_rate: float = LEARNING_RATE
) -> Callable[..., Program]:
    """`refit(*batch) -> guide`: `steps` steps of Adam, the learning rate falling to zero.

    Raises:
        CannotSayError: the guide has no parameter of its own.
    """

    def refit(*batch: Any) -> Program:
        fresh = ModelGuidePair(pair.model, pair.guide, pair.objective)
        fresh.materialize_parameters(*batch)
        fresh.load_state(pair.state())
        with fresh.scope():
            leaves = guide_leaves(fresh, *batch)
            rows = len(batch[0])
            optimizer = torch.optim.Adam(leaves, lr=learning_rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for leaf in fresh.unconstrained_parameters.values():
                leaf.requires_grad_(True)
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    fresh.objective.loss_and_grads(fresh.model, fresh.guide, *batch)
                for leaf in leaves:
                    if leaf.grad is not None:
                        leaf.grad /= rows
                optimizer.step()
                schedule.step()

        def guide(*args: Any) -> Any:
            with fresh.scope():
                return fresh.guide(*args)

        return guide

    return refit


def guide_leaves(pair: ModelGuidePair, *batch: Any) -> list[torch.Tensor]:
    """The parameters that the guide uses and the model does not."""
    own = []
    for program in (pair.guide, pair.model):
        with torch.no_grad(), preserve_rng(), poutine.block():
            trace = poutine.trace(program).get_trace(*batch)
        own.append({f"store/{name}" for name in trace.param_nodes})
    named = [
        leaf
        for name, leaf in pair.unconstrained_parameters.items()
        if name.startswith("guide/") or name in own[0] - own[1]
    ]
    if not named:
        raise CannotSayError("The guide has no parameter of its own to fit anew.")
    return named
