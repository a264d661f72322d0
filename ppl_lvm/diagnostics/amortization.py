"""Does the guide read the data? Only then is it a posterior of simulated data, too."""

from typing import Any

import torch

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.invalid_parameters import on_simulated
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.posterior.simulation import simulate


def require_amortized(
    model: Program, guide: Program, batch: tuple[Any, ...], plan: PairStructure
) -> None:
    """Refuse a guide that does not read the data, or whose sites have no truth to be held to.

    Its density of the same latents is the same on two simulated data sets, to the last bit.

    Raises:
        CannotSayError: saying which.
    """
    values, first = simulate(model, *batch)
    if missing := [n for n in plan.latents if n not in values]:
        raise CannotSayError(f"The guide's site '{missing[0]}' is not in the model: no truth.")
    _, second = simulate(model, *batch)
    scores = []
    for fresh in (first, second):
        with on_simulated(model, guide, batch, fresh):
            sites = run_pair(model, guide, fresh, {}, plan, None, values=values)
            scores.append(tabulate(*sites, plan, False).log_q)
    moving = [n for n in plan.latents if n not in plan.constant]
    if all(torch.equal(scores[0][n], scores[1][n]) for n in moving):
        raise CannotSayError(
            "The guide does not read the data: for simulated data it would have to be fitted "
            "again. Use an amortised guide, or ask for refits (refits=100, --refits 100)."
        )
