"""Amortization test: reject guides that do not read the data.

Only a guide that reads the data is a posterior of simulated data too.
"""

import pyro
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.invalid_parameters import locate_invalid_parameters
from ppl_lvm.particles.dependence import FollowDependence
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.posterior.simulation import simulate


def require_amortized(
    model: Program, guide: Program, batch: Batch, structure: PairStructure
) -> None:
    """Reject guides that do not read the data, or that draw sites which the model lacks.

    A guide does not read the data if its density depends on no element of them.

    Raises:
        CannotSayError: naming the reason.
    """
    values, simulated = simulate(model, *batch)
    if missing := [n for n in structure.latents if n not in values]:
        raise CannotSayError(
            f"The guide's site '{missing[0]}' is not in the model: no truth.",
            verdict="not applicable",
        )
    with locate_invalid_parameters(model, guide, batch, simulated):
        run_pair(model, guide, simulated, {}, structure, None, values=values)
    with pyro.validation_enabled(False), FollowDependence() as dependence:
        for data in [part for part in simulated if isinstance(part, Tensor)]:
            dependence.label(data)
        sites = run_pair(model, guide, simulated, {}, structure, None, values=values)
        log_q = tabulate(*sites, structure, False).log_q
        sites_with_density = [n for n in structure.latents if n not in structure.constant]
        reads = any(dependence.labels(log_q[n]) is not None for n in sites_with_density)
    if not reads and not dependence.is_unknown:
        raise CannotSayError(
            "The guide does not read the data: for simulated data it would have to be fitted "
            "again.",
            "Ask for refits (refits=100), or use an amortized guide.",
        )
