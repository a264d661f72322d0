"""Reading Pyro traces."""

from collections.abc import Collection
from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample

from ppl_lvm.programs.minibatch import frame_size


def row_plate_size(trace: poutine.Trace, plates: Collection[str]) -> int | None:
    """Largest size of the plates over rows in a trace; None without one of them."""
    sizes = [
        frame_size(site, frame)
        for site in trace.nodes.values()
        for frame in site.get("cond_indep_stack", ())
        if frame.name in plates
    ]
    return max(sizes, default=None)


def latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    """Name -> site of the latent sites of a trace."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def plate_nesting(trace: poutine.Trace) -> int:
    """Number of rightmost dimensions that the plates of a trace use."""
    frames = [f for s in trace.nodes.values() for f in s.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)
