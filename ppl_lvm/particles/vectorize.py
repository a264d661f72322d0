"""Test of vectorized particles against single runs.

Under a particle plate every batch shape becomes (K, ..., B, ...). A program that indexes from the
left, or reshapes to its batch, may fail there or silently score another quantity. A few vectorized
particles are therefore scored again by single runs on the same values. A weight of zero hides such
a fault from values, so the dependence of every density on the draws is compared too: it must be on
those of the same particle, and of the same row.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.messages import reason_of
from ppl_lvm.particles.dependence import row_labels
from ppl_lvm.particles.log_prob_tables import PairRun, Tables, tabulate
from ppl_lvm.particles.plate_dependence import follow_draws
from ppl_lvm.particles.structure import PairStructure, without_side_effects
from ppl_lvm.particles.tracing import PROGRAM_ERRORS, plate_dim


def why_not_vectorized(run: PairRun, structure: PairStructure, num_particles: int) -> str | None:
    """The fault under the particle plate; None if vectorized and single runs agree.

    The first and the last particle are compared: the last one reveals a program that uses the
    first particle for all, or mixes particles.
    """
    with without_side_effects():
        single_guide, _ = run(None)
        latents = {name: s for name, s in single_guide.items() if not s["is_observed"]}
        shapes = {name: site["value"].shape for name, site in latents.items()}
        try:
            sites = run(num_particles)
            vectorized = tabulate(*sites, structure, vectorized=True)
            for k in (0, num_particles - 1):
                values = {
                    name: _particle(site, k, shapes.get(name))
                    for sites_ in sites[::-1]
                    for name, site in sites_.items()
                    if name in shapes or site_is_subsample(site)
                }
                single = tabulate(*run(None, values=values), structure, vectorized=False)
                problem = _disagreement(vectorized, single, k)
                if problem is not None:
                    return problem
            return _mixture(run, structure, num_particles)
        except PROGRAM_ERRORS as error:
            return f"under a particle plate the program fails: {reason_of(error)}"


def _particle(site: Mapping[str, Any], k: int, shape: torch.Size | None) -> Any:
    """The value of particle k in the shape of a single run."""
    if site_is_subsample(site) or shape is None:
        return site["value"]
    return site["value"][k].reshape(shape)


def _densities(tables: Tables) -> list[tuple[str, str, Tensor]]:
    """(site, kind of density, table) of a run."""
    densities = [(name, "log q", values) for name, values in tables.log_q.items()]
    densities += [(name, "log p", values) for name, values in tables.log_p.items()]
    if tables.marginal is not None:
        densities.append(("the enumerated sites", "log p", tables.marginal))
    return densities


def _disagreement(vectorized: Tables, single: Tables, k: int) -> str | None:
    pairs = zip(_densities(vectorized), _densities(single), strict=True)
    for (name, density, all_k), (_, _, one) in pairs:
        ours = all_k[min(k, len(all_k) - 1)]
        tolerance = math.sqrt(torch.finfo(ours.dtype).eps)
        if not torch.allclose(ours, one[0], rtol=tolerance, atol=tolerance, equal_nan=True):
            return (
                f"site '{name}' has another {density} under a particle plate than in a single run"
            )
    return None


def _mixture(run: PairRun, structure: PairStructure, num_particles: int) -> str | None:
    """A density that depends on draws of another particle, or of another row of one plate."""

    def particle(site: Any) -> int:
        return -1 - structure.nesting

    def row(site: Any) -> int | None:
        return plate_dim(site, structure.data_plate)

    for axis, dim in enumerate(
        (particle, row) if structure.data_plate is not None else (particle,)
    ):
        with follow_draws(dim) as dependence:
            sites = run(num_particles)
            tables = tabulate(*sites, structure, vectorized=True)
            if dependence.is_unknown:
                return "the program makes a Python number or a decision of a draw"
            for name, density, values in _densities(tables):
                labels = dependence.labels(values)
                if labels is None:
                    continue
                expected = row_labels(values.shape[axis], axis - 2).to(labels.device)
                if bool(((labels != 0) & (labels != expected)).any()):
                    other = "row" if axis else "particle"
                    return (
                        f"under a particle plate the {density} of site '{name}' depends on draws "
                        f"of another {other}"
                    )
    return None
