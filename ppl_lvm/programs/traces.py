"""TODO."""

from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample

from ppl_lvm.programs.minibatch import DATA_PLATE


def data_plate_size(trace: poutine.Trace) -> int | None:
    """The rows of the plate "data" in a trace; None where there is no such plate."""
    for site in trace.nodes.values():
        for frame in site.get("cond_indep_stack", ()):
            if frame.name == DATA_PLATE:
                return int(frame.size)
    return None


def latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Name -> site of the sampled, not observed, sites of a trace."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def plate_nesting(trace: poutine.Trace) -> int:
    """How many dimensions on the right the plates of a trace take up."""
    frames = [f for s in trace.nodes.values() for f in s.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)
