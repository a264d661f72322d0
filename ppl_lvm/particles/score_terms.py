"""Score-function terms, Rao-Blackwellized over plates and the order of draws.

For a site i of the guide without a reparameterized draw, and a member m of its plates, the gradient
of E[log w] has the term

    cost_im ∇log q_im,     cost_im = Σ of the terms of log w that draw m can change.

The other terms are independent of the draw given the draws before it, where ∇log q_im has mean
zero. Three facts of the programs exclude a term from the cost:

- Plates: members of a plate are independent, but for those of `PairStructure.mixed`, so a term in
  the same plate counts for its own member only, unless it reads a later draw outside the plate,
  which may depend on all members. A term outside that plate counts for all members, and a term in a
  further plate is summed over that plate.
- Dependence: of a site before a draw outside its plates, terms that no value of it changes.
- Order: log q_j of a site drawn before i, and log p_j of a site of the model before which no draw
  has been read that the guide makes at or after i.

References:
    Ranganath, Gerrish, Blei (2014). Black box variational inference.
    https://arxiv.org/abs/1401.0118
    Schulman, Heess, Weber, Abbeel (2015). Gradient estimation using stochastic computation graphs.
    https://arxiv.org/abs/1506.05254
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_lvm.particles.log_prob_tables import Tables
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import Site, Sites, align, plate_dim, plate_frames, table

Plates = dict[str, int]  # dimension by name


@dataclass(frozen=True)
class ScoreTerm:
    """Score and cost of one site's draws.

    Attributes:
        score: (K, plates) log q of each member's draw, neither scaled nor masked.
        cost: (K, plates), without gradient: the terms of log w that the draw can change.
        row_dim: the dimension of the data plate, from the right; None if joint.
    """

    score: Tensor
    cost: Tensor
    row_dim: int | None

    def per_row(self, signal: Tensor) -> Tensor:
        """Σ signal · score over the members of each row: (K, B)."""
        return table(signal * self.score, self.score.dim() - 1, self.row_dim)

    def mean_per_row(self, value: Tensor) -> Tensor:
        """Mean of (K, plates) over the members of each row: (K, B)."""
        rows = table(value, value.dim() - 1, self.row_dim)
        return rows * (rows.numel() / value.numel())

    def expand(self, per_row: Tensor) -> Tensor:
        """A quantity per row, (..., B), with the plate dimensions of the site."""
        plates = [1] * (self.score.dim() - 1)
        if self.row_dim is not None:
            plates[self.row_dim] = per_row.shape[-1]
        return per_row.reshape(*per_row.shape[:-1], *plates)


def score_terms(
    guide: Sites, model: Sites, structure: PairStructure, tables: Tables
) -> tuple[ScoreTerm, ...]:
    """The terms of all sites without a reparameterized draw, in the order of the draws."""
    position = {name: i for i, name in enumerate(tables.terms_q)}
    terms = list(_terms(guide, model, structure, tables, position))
    scores = []
    for name in structure.score_sites:
        unaffected = structure.unaffected.get(name, frozenset())
        shared = _shared_until(name, guide, position, unaffected)
        shared = {plate: each for plate, each in shared.items() if plate not in structure.mixed}
        score = align(tables.terms_score[name], structure.nesting)
        cost = torch.zeros((), dtype=score.dtype, device=score.device)
        for key, last_read, plates, value in terms:
            if last_read >= position[name] and key not in unaffected:
                target = {p: dim for p, (dim, first) in shared.items() if last_read < first}
                cost = cost + _sum_to(align(value.detach(), structure.nesting), plates, target)
        row_dim = plate_dim(guide[name], structure.data_plate)
        scores.append(ScoreTerm(score, cost.expand_as(score), row_dim))
    return tuple(scores)


def _terms(
    guide: Sites, model: Sites, structure: PairStructure, tables: Tables, position: dict[str, int]
) -> Iterator[tuple[tuple[str, str], int, Plates, Tensor]]:
    """Terms of log w: key, position of the last draw that it can read, plates, (K, plates)."""
    for name, log_q in tables.terms_q.items():
        if name not in structure.constant:
            yield ("guide", name), position[name], _plates(guide[name]), -log_q
    last_read = -1
    for name in model:
        last_read = max(last_read, position.get(name, -1))
        if name in tables.terms_p and name not in structure.constant:
            yield ("model", name), last_read, _plates(model[name]), tables.terms_p[name]
    dims = {f.name: f.dim for site in model.values() for f in plate_frames(site)}
    for names, marginal in tables.marginal_terms:
        yield ("model", ""), len(position) - 1, {n: dims[n] for n in names if n in dims}, marginal


def _plates(site: Site) -> Plates:
    return {frame.name: frame.dim for frame in plate_frames(site)}


def _shared_until(
    name: str,
    guide: Sites,
    position: dict[str, int],
    unaffected: frozenset[tuple[str, str]],
) -> dict[str, tuple[int, int]]:
    """Plates of a site: dimension, and position of the first later draw outside the plate.

    Such a draw may depend on all members, and carries that to the terms that read it, unless it is
    `unaffected`.
    """
    later = [n for n in position if position[n] > position[name] and ("guide", n) not in unaffected]
    return {
        plate: (
            dim,
            next((position[n] for n in later if _plates(guide[n]).get(plate) != dim), len(guide)),
        )
        for plate, dim in _plates(guide[name]).items()
    }


def _sum_to(value: Tensor, plates: Plates, target: Plates) -> Tensor:
    """Sum over the plates that the target is not in."""
    dims = [dim for name, dim in plates.items() if target.get(name) != dim]
    return value.sum(dims, keepdim=True) if dims else value
