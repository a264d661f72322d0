"""Joint and guide densities on flat, unconstrained latent vectors.

All continuous latents of row n become one vector u_n ∈ R^D by the bijection of their support. Both
densities include its Jacobian, so that gradient-based transitions move C chains of all N rows at
once: u (C, N, D). With global latents all latents form one vector: u (C, 1, D).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Program
from ppl_lvm.diagnostics.finding import POINT, VECTORIZE
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.tracing import Sites, plate_dim, table


@dataclass(frozen=True)
class _LatentBlock:
    """Place of one site in u; `shape` (plates + event) is that of one unconstrained value."""

    shape: torch.Size
    event_dim: int
    value_shape: torch.Size
    data_dim: int | None
    transform: Any
    start: int
    stop: int


class UnconstrainedDensity:
    """The densities of a pair on `batch`.

    Attributes:
        rows: N, or 1 with global latents.
        size: D.

    Raises:
        CannotSayError: the guide has no latents, discrete ones or points, or the programs do not
            run under a particle plate.
    """

    def __init__(self, model: Program, guide: Program, *batch: Any) -> None:
        self.model, self.guide, self.batch = model, guide, batch
        self.structure = analyze_for_particles(model, guide, batch, {}, 2)
        if not self.structure.latents:
            raise CannotSayError(
                "The guide draws nothing: the bound is log p(x) itself.", verdict="exact"
            )
        if not self.structure.vectorized:
            raise CannotSayError("The programs do not run under a particle plate.", VECTORIZE)
        with torch.no_grad(), preserve_rng():
            guide_sites, model_sites = run_pair(model, guide, batch, {}, self.structure, 2)
        self.parts: dict[str, _LatentBlock] = {}
        self.size = 0
        for name in self.structure.latents:
            if name not in self.structure.constant:
                self._add(name, guide_sites[name], model_sites.get(name, guide_sites[name]))
        self.rows = 1 if self.structure.data_plate is None else self._count_rows()

    def _add(self, name: str, site: Any, model_site: Any) -> None:
        if is_point(site["fn"]):
            raise CannotSayError(f"The guide's site '{name}' is a point and has no density.", POINT)
        support = model_site["fn"].support
        if support.is_discrete or not site["value"].is_floating_point():
            raise CannotSayError(
                f"The guide draws the discrete site '{name}', and Hamiltonian transitions need "
                "continuous ones.",
                "Leave it out of the guide, and it is summed out exactly.",
            )
        transform = biject_to(support)
        value = site["value"][0]
        u = transform.inv(site["value"])[0]
        data_dim = plate_dim(site, self.structure.data_plate)
        if self.structure.data_plate is None:
            width = u.numel()
        else:
            assert data_dim is not None
            width = u.numel() // u.shape[u.dim() - transform.domain.event_dim + data_dim]
        self.parts[name] = _LatentBlock(
            u.shape,
            transform.domain.event_dim,
            value.shape,
            data_dim,
            transform,
            self.size,
            self.size + width,
        )
        self.size += width

    def _count_rows(self) -> int:
        part = next(iter(self.parts.values()))
        assert part.data_dim is not None
        return int(part.shape[len(part.shape) - part.event_dim + part.data_dim])

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Site -> (C, ...) becomes u (C, N, D)."""
        columns = []
        for name, part in self.parts.items():
            u = part.transform.inv(values[name].reshape(-1, *part.value_shape))
            if self.structure.data_plate is not None:
                u = u.movedim(self._row_axis(part), 1)
            columns.append(u.reshape(len(u), self.rows, -1))
        return torch.cat(columns, -1)

    def _row_axis(self, part: _LatentBlock) -> int:
        """Axis of the rows in an unconstrained value with a particle dimension."""
        assert part.data_dim is not None
        return 1 + len(part.shape) - part.event_dim + part.data_dim

    def values(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Site -> value from u (C, N, D), and log |dz/du| (C, N)."""
        values = {}
        jacobian: Any = 0.0
        for name, part in self.parts.items():
            block = u[..., part.start : part.stop]
            if self.structure.data_plate is None:
                site = block.reshape(len(u), *part.shape)
            else:
                axis = self._row_axis(part)
                shape = list(part.shape)
                del shape[axis - 1]
                site = block.reshape(len(u), self.rows, *shape).movedim(1, axis)
            values[name] = part.transform(site)
            log_det = part.transform.log_abs_det_jacobian(site, values[name])
            jacobian = jacobian + table(log_det, self.structure.nesting, part.data_dim)
        return values, jacobian

    def densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(log p(x, u), log q(u | x)), each (C, N), both with u's Jacobian."""
        values, jacobian = self.values(u)
        guide, model = run_pair(
            self.model, self.guide, self.batch, {}, self.structure, len(u), values=values
        )
        log_p, log_q = self._sums(guide, model, len(u))
        return log_p + jacobian, log_q + jacobian

    def _sums(self, guide: Sites, model: Sites, chains: int) -> tuple[Tensor, Tensor]:
        tables = tabulate(guide, model, self.structure, vectorized=True)
        constant = self.structure.constant
        log_p = [v for n, v in tables.log_p.items() if n not in constant]
        if tables.marginal is not None:
            log_p.append(tables.marginal)
        log_q = [v for n, v in tables.log_q.items() if n not in constant]
        shape = (chains, self.rows)
        return (
            torch.stack([v.expand(shape) for v in log_p]).sum(0),
            torch.stack([v.expand(shape) for v in log_q]).sum(0),
        )

    def draw(self, chains: int) -> Tensor:
        """u (C, N, D) from the guide."""
        with torch.no_grad():
            # `vectorized` keeps the particle dimension for a single chain too.
            structure = replace(self.structure, vectorized=True)
            guide, _ = run_pair(self.model, self.guide, self.batch, {}, structure, chains)
            return self.flatten({name: guide[name]["value"] for name in self.parts}).contiguous()


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean of exp over dimension 0."""
    return log_w.logsumexp(0) - math.log(len(log_w))
