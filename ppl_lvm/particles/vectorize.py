"""May the particles of a pair run in one vectorised pass? Tried, not guessed.

Under a particle plate every batch shape becomes (K, ..., B, ...). A program that indexes from the
left, or reshapes to its batch, may fail there or, worse, score something else in silence. So a
few vectorised particles are scored again by plain runs on the same values.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample

from ppl_lvm.particles.log_prob_tables import Tables, run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure, Program, without_side_effects


def why_not_vectorized(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plan: PairStructure,
    num_particles: int,
) -> str | None:
    """What goes wrong under the particle plate; None if vectorised and plain runs agree.

    The first and the last particle are compared: a program that takes the first for all, or mixes
    particles, is found out by the last.
    """
    with without_side_effects():
        plain_guide, _ = run_pair(model, guide, args, kwargs, plan, None)
        drawn = {name: s for name, s in plain_guide.items() if not s["is_observed"]}
        shapes = {name: site["value"].shape for name, site in drawn.items()}
        try:
            sites = run_pair(model, guide, args, kwargs, plan, num_particles)
            together = tabulate(*sites, plan, vectorized=True)
            for k in (0, num_particles - 1):
                values = {
                    name: _particle(site, k, shapes.get(name))
                    for sites_ in sites[::-1]
                    for name, site in sites_.items()
                    if name in shapes or site_is_subsample(site)
                }
                alone = tabulate(
                    *run_pair(model, guide, args, kwargs, plan, None, values=values),
                    plan,
                    vectorized=False,
                )
                problem = _disagreement(together, alone, k)
                if problem is not None:
                    return problem
        except (AssertionError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            return f"under a particle plate the program fails: {str(error).splitlines()[0]}"
    return None


def _particle(site: Mapping[str, Any], k: int, shape: torch.Size | None) -> Any:
    """Particle k's value as a plain run would have drawn it."""
    if site_is_subsample(site) or shape is None:
        return site["value"]
    return site["value"][k].reshape(shape)


def _disagreement(together: Tables, alone: Tables, k: int) -> str | None:
    pairs = [(n, "log q", t, alone.log_q[n]) for n, t in together.log_q.items()]
    pairs += [(n, "log p", t, alone.log_p[n]) for n, t in together.log_p.items()]
    if together.marginal is not None and alone.marginal is not None:
        pairs.append(("the enumerated sites", "log p", together.marginal, alone.marginal))
    for name, what, all_k, one in pairs:
        ours = all_k[min(k, len(all_k) - 1)]
        tolerance = math.sqrt(torch.finfo(ours.dtype).eps)
        if not torch.allclose(ours, one[0], rtol=tolerance, atol=tolerance, equal_nan=True):
            return f"site '{name}' has another {what} under a particle plate than alone"
    return None
