"""The normal of draws from chains."""

import torch
from torch import Tensor

from ppl_lvm.approximation.factored_normal import FactoredNormal, matched
from ppl_lvm.approximation.normal import MAX_DENSE, DenseNormal, Normal
from ppl_lvm.approximation.unconstrained import LinAlgError, LogDensity

MATCHED = 512  # draws, whose scores give the directions


def normal_of_draws(target: LogDensity, draws: Tensor, before: Normal | None = None) -> Normal:
    """The normal with the means and standard deviations of draws (S, D).

    Its correlations are those of the draws; of many values those by which scores match at some of
    the draws, from the normal `before` on.

    Raises:
        torch.linalg.LinAlgError: the draws do not vary.
    """
    if target.dim <= MAX_DENSE:
        return DenseNormal.of_draws(draws)
    loc, sd = draws.mean(0), draws.std(0)
    if not (sd > 0).all():
        raise LinAlgError("The draws do not vary.")
    if not isinstance(before, FactoredNormal):
        before = FactoredNormal.diagonal(loc, sd)
    u = draws[torch.linspace(0, len(draws) - 1, MATCHED).round().long()]
    new = matched(before, u, target(u)[1])
    return (new or before).rescaled(loc, sd)
