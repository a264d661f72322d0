"""Test of vectorized particles against single runs.

Under a particle plate every batch shape becomes (K, ..., B, ...). A program that indexes from the
left, or reshapes to its batch, may fail there or silently score another quantity. A few vectorized
particles are therefore scored again by single runs on the same values.
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
    structure: PairStructure,
    num_particles: int,
) -> str | None:
    """The fault under the particle plate; None if vectorized and single runs agree.

    The first and the last particle are compared: the last one reveals a program that uses the
    first particle for all, or mixes particles.
    """
    with without_side_effects():
        single_guide, _ = run_pair(model, guide, args, kwargs, structure, None)
        latents = {name: s for name, s in single_guide.items() if not s["is_observed"]}
        shapes = {name: site["value"].shape for name, site in latents.items()}
        try:
            sites = run_pair(model, guide, args, kwargs, structure, num_particles)
            vectorized = tabulate(*sites, structure, vectorized=True)
            for k in (0, num_particles - 1):
                values = {
                    name: _particle(site, k, shapes.get(name))
                    for sites_ in sites[::-1]
                    for name, site in sites_.items()
                    if name in shapes or site_is_subsample(site)
                }
                single = tabulate(
                    *run_pair(model, guide, args, kwargs, structure, None, values=values),
                    structure,
                    vectorized=False,
                )
                problem = _disagreement(vectorized, single, k)
                if problem is not None:
                    return problem
        except (AssertionError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            return f"under a particle plate the program fails: {str(error).splitlines()[0]}"
    return None


def _particle(site: Mapping[str, Any], k: int, shape: torch.Size | None) -> Any:
    """The value of particle k in the shape of a single run."""
    if site_is_subsample(site) or shape is None:
        return site["value"]
    return site["value"][k].reshape(shape)


def _disagreement(vectorized: Tables, single: Tables, k: int) -> str | None:
    pairs = [(n, "log q", t, single.log_q[n]) for n, t in vectorized.log_q.items()]
    pairs += [(n, "log p", t, single.log_p[n]) for n, t in vectorized.log_p.items()]
    if vectorized.marginal is not None and single.marginal is not None:
        pairs.append(("the enumerated sites", "log p", vectorized.marginal, single.marginal))
    for name, density, all_k, one in pairs:
        ours = all_k[min(k, len(all_k) - 1)]
        tolerance = math.sqrt(torch.finfo(ours.dtype).eps)
        if not torch.allclose(ours, one[0], rtol=tolerance, atol=tolerance, equal_nan=True):
            return (
                f"site '{name}' has another {density} under a particle plate than in a single run"
            )
    return None
