"""Log-densities of one run as (K, B) tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.core.distributions import unmasked
from ppl_lvm.particles.bound_estimate import estimated_site
from ppl_lvm.particles.enumeration import has_enumerated_dim, sum_out
from ppl_lvm.particles.guide_enumeration import GuideExpectation
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import (
    ReplayValues,
    Sites,
    inside_scale,
    is_one,
    is_scored,
    log_prob,
    plate_dim,
    plate_ratio,
    table,
    temper,
    trace_program,
)
from ppl_lvm.programs.minibatch import WEIGHTS

# Run of a pair, `run_pair` with its first arguments: (particles, values=, drawing=) -> sites.
PairRun = Callable[..., tuple[Sites, Sites]]


@dataclass
class Tables:
    """Log-densities of one run of a pair: (K, B) per site, (K, 1) where joint.

    Attributes:
        log_p: by site of the model, without the enumerated factors.
        log_q: by site of the guide.
        score: as log_q, but neither scaled nor masked.
        marginal: log-density of all sites that depend on an enumerated site; None without any.
        terms_p, terms_q, terms_score: log_p, log_q and score before the sum over plates.
        marginal_terms: the terms of `marginal`, (K, plates), with the names of their plates.
        scale: N/B of the data plate, times the weights of rows (B,) if they have some.
        energy_reason: why a subsampling scale is inside the log-weight; None if it is not.
        estimate: the model's site that scores an estimate of a bound, or None.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    score: dict[str, Tensor]
    marginal: Tensor | None
    scale: Any
    energy_reason: str | None
    estimate: str | None = None
    terms_p: dict[str, Tensor] = field(default_factory=dict)
    terms_q: dict[str, Tensor] = field(default_factory=dict)
    terms_score: dict[str, Tensor] = field(default_factory=dict)
    marginal_terms: list[tuple[frozenset[str], Tensor]] = field(default_factory=list)


def run_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    structure: PairStructure,
    particles: int | None,
    *,
    values: Mapping[str, Any] | None = None,
    drawing: Messenger | None = None,
) -> tuple[Sites, Sites]:
    """Run guide and model, vectorized over `particles`, or once (None): (guide, model) sites.

    `values` replaces draws by known values. Plate indices that are not among them are drawn.
    """
    replay = ReplayValues(values, recompute_points=True) if values is not None else None
    guide_sites = trace_program(
        guide,
        args,
        kwargs,
        particles=particles,
        nesting=structure.nesting,
        replay=replay,
        enumerated=structure.expected,
        drawing=drawing,
    )
    known = {name: site["value"] for name, site in guide_sites.items()}
    if values is not None:
        known = {**values, **known}
    model_sites = trace_program(
        model,
        args,
        kwargs,
        particles=particles,
        nesting=structure.nesting,
        replay=ReplayValues(known),
        enumerated=structure.enumerated,
        drawing=drawing,
    )
    return guide_sites, model_sites


def tabulate(guide: Sites, model: Sites, structure: PairStructure, vectorized: bool) -> Tables:
    """(K, B) tables per site of the two runs; (K, 1) where joint."""
    rank = structure.nesting + vectorized
    tables = Tables({}, {}, {}, None, 1.0, None, estimated_site(model))
    factors = {}
    expect = GuideExpectation(guide, structure.expected, rank)
    omitted = () if structure.scores_factors else structure.factors
    for name, site in guide.items():
        if is_scored(site) and name not in omitted:
            log_q = density = log_prob(site)
            if (bare := unmasked(site["fn"])) is not site["fn"]:
                density = log_prob({**site, "fn": bare})
            dim = plate_dim(site, structure.data_plate)
            tempered = temper(log_q, inside_scale(site, structure.data_plate), site["mask"])
            tempered, density = expect(site, tempered), expect(site, density)
            tables.terms_q[name], tables.terms_score[name] = tempered, density
            tables.log_q[name] = table(tempered, structure.nesting, dim)
            same = tempered is density
            tables.score[name] = (
                tables.log_q[name] if same else table(density, structure.nesting, dim)
            )
    for name, site in model.items():
        if not is_scored(site):
            continue
        log_p = log_prob(site)
        if structure.enumerated and has_enumerated_dim(site, log_p, rank):
            factors[name] = log_p
            continue
        dim = plate_dim(site, structure.data_plate)
        tempered = temper(log_p, inside_scale(site, structure.data_plate), site["mask"])
        tables.terms_p[name] = tempered = expect(site, tempered)
        tables.log_p[name] = table(tempered, structure.nesting, dim)
    if factors:
        dims = (plate_dim(model[name], structure.data_plate) for name in factors)
        dim = next((d for d in dims if d is not None), None)
        tables.marginal_terms = sum_out(model, factors, structure.nesting, structure.data_plate)
        parts = [table(term, structure.nesting, dim) for _, term in tables.marginal_terms]
        tables.marginal = sum(parts[1:], start=parts[0])
    _read_scales(tables, [*guide.values(), *model.values()], structure)
    return tables


def _read_scales(tables: Tables, sites: list[Any], structure: PairStructure) -> None:
    for site in sites:
        if structure.data_plate is not None and plate_dim(site, structure.data_plate) is not None:
            weights = site["infer"].get(WEIGHTS)
            ratio = plate_ratio(site, structure.data_plate)
            tables.scale = ratio if weights is None else ratio * weights.reshape(-1)
        inside = plate_ratio(site)
        if structure.data_plate is not None:
            inside = inside / plate_ratio(site, structure.data_plate)
        if (
            structure.data_plate is None
            and WEIGHTS in site["infer"]
            and site["name"] in structure.latents
        ):
            tables.energy_reason = (
                f"the weights of rows are inside the log-weight ({structure.joint_reason})"
            )
        if not is_one(inside) and tables.energy_reason is None:
            tables.energy_reason = (
                f"the plates around site '{site['name']}' are subsampled inside the log-weight"
                + (f" ({structure.joint_reason})" if structure.joint_reason else "")
            )
