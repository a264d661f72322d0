"""Exact expectations over the guide's enumerated sites.

A term f of the bound that depends on enumerated sites c with guide probabilities q(c) becomes

    E_q[f] = Σ_c q(c) f(c),

the sum over all values of the sites that f depends on, and of their ancestors. The result has one
value per particle and row, and its gradient with respect to q is exact. It replaces f in bounds
that are linear in f.
"""

from typing import Any

import torch
from torch import Tensor

from ppl_lvm.particles.tracing import Sites, log_prob, plate_frames


class GuideExpectation:
    """Expectation of a site's log-density under the guide's enumerated sites.

    Args:
        guide: sites of a run in which `enumerated` take all their values in parallel.
        rank: number of dimensions of particles and plates.
    """

    def __init__(self, guide: Sites, enumerated: frozenset[str], rank: int) -> None:
        self._rank = rank
        self._sites = {
            site["infer"]["_enumerate_dim"]: site
            for name, site in guide.items()
            if name in enumerated and site["infer"].get("_enumerate_dim") is not None
        }
        self._q = {dim: log_prob(site).exp() for dim, site in self._sites.items()}

    def __call__(self, site: Any, term: Tensor) -> Tensor:
        """Σ_c q(c) term(c), without the dimensions of enumerated values.

        Raises:
            ValueError: the site depends on an enumerated site inside a plate around that one only,
                or mixes enumerated values with a plate.
        """
        if not self._sites:
            return term
        self._refuse_mixed_values(site, term)
        if term.dim() <= self._rank:
            return term
        weights = torch.ones((), dtype=term.dtype, device=term.device)
        dims, pending = set(), self._dims_of(term)
        frames = {frame.name for frame in plate_frames(site)}
        while pending:
            dim = pending.pop()
            dims.add(dim)
            parent = self._sites[dim]
            if outside := {frame.name for frame in plate_frames(parent)} - frames:
                raise ValueError(
                    f"Site '{site['name']}' depends on '{parent['name']}', which the guide "
                    f"enumerates inside plate '{min(outside)}', but is outside this plate. Remove "
                    "the mark for enumeration, or put the site inside the plate."
                )
            weights = weights * self._q[dim]
            pending |= self._dims_of(self._q[dim]) - dims
        # A value without probability contributes nothing, even if impossible under the model.
        value = torch.where(weights > 0, term, torch.zeros_like(term)) * weights
        return value.sum(tuple(range(value.dim() - self._rank)))

    def _refuse_mixed_values(self, site: Any, term: Tensor) -> None:
        """Refuse enumerated values that the code moved to the dimension of a plate."""
        names = ", ".join(sorted(parent["name"] for parent in self._sites.values()))
        declared = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
        for dim in range(-min(self._rank, term.dim()), 0):
            if term.shape[dim] > 1 and dim not in declared:
                raise ValueError(
                    f"Site '{site['name']}' has {term.shape[dim]} values at dimension {dim}, which "
                    f"no plate of it declares: its code mixes the values of "
                    f"{names}, which the guide enumerates, "
                    "with a plate. Remove the mark for enumeration, or index from the right and "
                    "sum over no plate."
                )

    def _dims_of(self, tensor: Tensor) -> set[int]:
        """Dimensions of enumerated values along which a tensor varies."""
        return {d for d in self._sites if tensor.dim() >= -d and tensor.shape[d] > 1}
