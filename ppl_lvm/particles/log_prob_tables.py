"""Run a pair once and read its log-densities as tables: (K, B) per site, (K, 1) where joint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.particles.bound_estimate import estimated_site
from ppl_lvm.particles.enumeration import sum_out
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import (
    Given,
    Sites,
    is_one,
    is_scored,
    log_prob,
    plate_dim,
    plate_ratio,
    table,
    temper,
    trace_program,
)


@dataclass
class Tables:
    """What one run of a pair gives.

    Attributes:
        log_p: by site of the model, the summed-out ones apart.
        log_q: by site of the guide.
        score: like log_q, neither scaled nor masked.
        marginal: log-density of all sites that touch an enumerated one; None without any.
        scale: the data plate's N/B.
        energy: why a sub-sampling scale is inside the log-weight; None if it is not.
        estimate: the model's site that estimates a bound; None if there is none.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    score: dict[str, Tensor]
    marginal: Tensor | None
    scale: Any
    energy_reason: str | None
    estimate: str | None = None


def run_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plan: PairStructure,
    particles: int | None,
    *,
    values: Mapping[str, Any] | None = None,
    drawing: Messenger | None = None,
) -> tuple[Sites, Sites]:
    """The guide's and the model's sites, vectorised over `particles` or plainly (None).

    `values` puts known values in place of draws; plates' index draws are among them or are drawn.
    """
    given = Given(values, recompute_points=True) if values is not None else None
    guide_sites = trace_program(
        guide, args, kwargs, particles=particles, nesting=plan.nesting, given=given, drawing=drawing
    )
    known = {name: site["value"] for name, site in guide_sites.items()}
    if values is not None:
        known = {**values, **known}
    model_sites = trace_program(
        model,
        args,
        kwargs,
        particles=particles,
        nesting=plan.nesting,
        given=Given(known),
        enumerated=plan.enumerated,
        drawing=drawing,
    )
    return guide_sites, model_sites


def inside_scale(site: Mapping[str, Any], plan: PairStructure) -> Any:
    """The scale that belongs inside log_w: all but the data plate's N/B."""
    if plan.data_plate is None:
        return site["scale"]
    ratio = plate_ratio(site, plan.data_plate)
    return site["scale"] if is_one(ratio) else site["scale"] / ratio


def tabulate(guide: Sites, model: Sites, plan: PairStructure, vectorized: bool) -> Tables:
    """(K, B) tables per site from the two runs; (K, 1) where joint."""
    rank = plan.nesting + vectorized
    tables = Tables({}, {}, {}, None, 1.0, None, estimated_site(model))
    factors = {}
    for name, site in guide.items():
        if is_scored(site):
            log_q = log_prob(site)
            dim = plate_dim(site, plan.data_plate)
            tempered = temper(log_q, inside_scale(site, plan), site["mask"])
            tables.log_q[name] = table(tempered, plan.nesting, dim)
            same = tempered is log_q
            tables.score[name] = tables.log_q[name] if same else table(log_q, plan.nesting, dim)
    for name, site in model.items():
        if not is_scored(site):
            continue
        log_p = log_prob(site)
        if log_p.dim() > rank:
            factors[name] = log_p
            continue
        dim = plate_dim(site, plan.data_plate)
        tempered = temper(log_p, inside_scale(site, plan), site["mask"])
        tables.log_p[name] = table(tempered, plan.nesting, dim)
    if factors:
        tables.marginal = sum_out(model, factors, plan.nesting, plan.data_plate)
    _read_scales(tables, [*guide.values(), *model.values()], plan)
    return tables


def _read_scales(tables: Tables, sites: list[Any], plan: PairStructure) -> None:
    for site in sites:
        if plan.data_plate is not None and plate_dim(site, plan.data_plate) is not None:
            tables.scale = plate_ratio(site, plan.data_plate)
        inside = plate_ratio(site)
        if plan.data_plate is not None:
            inside = inside / plate_ratio(site, plan.data_plate)
        if not is_one(inside) and tables.energy_reason is None:
            tables.energy_reason = (
                f"the plates around site '{site['name']}' are sub-sampled inside the log-weight"
                + (f" ({plan.joint_reason})" if plan.joint_reason else "")
            )
