"""Structure of a model-guide pair: data plate, site kinds, enumeration.

One run of guide and model, which preserves the random state, determines:

- The data plate: the plate over the rows of the batch (`programs/row_plates.py`). If all random
  sites are inside, there is one log-weight per particle and row. An estimator also takes the
  outermost plate around every latent site, as everybody does where no argument has rows.
- If a random site is outside (a global latent, several sibling plates), or a row depends on draws
  of other rows, all log-densities of a particle form one joint log-weight.
- A site outside the data plate that no draw changes (a log-prior of parameters, a point estimate)
  is an offset of the bound and not part of the log-weights.
- Discrete sites of the model alone. They must be marked for enumeration and are summed out.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro.distributions import Unit

from ppl_lvm.core.distributions import family, is_discrete, is_point, is_straight_through, unwrap
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.particles.auxiliary_sites import auxiliary_problem
from ppl_lvm.particles.bound_estimate import estimated_site, refuse_other_draws
from ppl_lvm.particles.plate_dependence import (
    Run,
    dependence_outside,
    mixed_plates,
    repeated_run,
    run_plainly,
    unaffected_terms,
)
from ppl_lvm.particles.tracing import (
    Sites,
    check_batch_shape,
    is_scored,
    log_prob,
    plate_frames,
)
from ppl_lvm.programs.minibatch import num_rows
from ppl_lvm.programs.row_plates import RowPlates, row_plates

Program = Callable[..., Any]


@dataclass(frozen=True)
class PairStructure:
    """The structure of a pair, constant over training steps.

    Attributes:
        nesting: number of plate dimensions.
        data_plate: names of the plate with one log-weight per row; None if the log-weight is joint.
        row_plates: names of the plates over rows, also where the log-weight is joint.
        joint_reason: why the log-weight is joint; None if it is not.
        enumerated: discrete sites of the model alone, summed out exactly.
        constant: sites outside the data plate that no draw changes.
        latents: distribution family by guide site, in the order of the draws.
        score_sites: the guide's sites without a reparameterized draw.
        straight_through: the guide's discrete draws with the gradient of a relaxed draw.
        vectorized: particles run in one vectorized pass.
        estimate: the model's site that scores an estimate of a bound (`bound_estimate`), or None.
        marked: the guide's sites that it marks for enumeration. They are drawn like others, unless
            `expected` says otherwise.
        expected: the guide's sites that are enumerated, so that densities are expectations over
            their values. Log-weights then have a meaning in their mean only.
        factors: `pyro.factor` sites of the guide. They are no density of a draw, so log-weights
            omit them, unless `scores_factors`.
        mixed: plates whose members are not independent, with the ("model" or "guide", site) whose
            density at one member depends on draws of others. Plates of guides whose draws are all
            reparameterized are not tested, but for the data plate.
        unaffected: of score sites before a draw outside their plates, the ("guide" or "model",
            site) whose density no value of theirs changes.
    """

    nesting: int
    data_plate: frozenset[str] | None
    row_plates: frozenset[str]
    joint_reason: str | None
    enumerated: frozenset[str]
    constant: frozenset[str]
    latents: dict[str, str]
    score_sites: tuple[str, ...]
    straight_through: tuple[str, ...] = ()
    vectorized: bool = False
    estimate: str | None = None
    marked: tuple[str, ...] = ()
    expected: frozenset[str] = frozenset()
    factors: tuple[str, ...] = ()
    scores_factors: bool = False

    def with_exact_expectation(self) -> "PairStructure":
        """The structure whose marked sites are enumerated and whose guide's factors count."""
        return replace(
            self,
            expected=frozenset(self.marked),
            scores_factors=True,
            score_sites=tuple(name for name in self.score_sites if name not in self.marked),
        )

    mixed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unaffected: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)


@contextmanager
def without_side_effects() -> Iterator[None]:
    """Run programs without gradients and restore the random state afterwards."""
    with preserve_rng(), torch.no_grad():
        yield


def analyze_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    any_plate: bool = False,
) -> PairStructure:
    """Determine the structure of a pair; errors name the site and the remedy.

    With `any_plate` a plate around every latent site has the log-weights where none is over rows.

    Runs the pair once, or several times if a site is outside the data plate. Programs must have a
    static structure: the same sites in the same plates at every call.
    """
    with without_side_effects():
        plainly = partial(run_plainly, model, guide, args, kwargs)
        guide_sites, model_sites = plainly()
        guide_latents = _scored(guide_sites)
        factors = tuple(name for name, site in guide_latents.items() if is_factor(site))
        for name in factors:
            del guide_latents[name]
        _refuse_density_factor(factors, guide_latents, model_sites)
        model_all = _scored(model_sites)
        enumerated = _check_sites(guide_latents, model_all)
        drawn = {name: site for name, site in model_all.items() if not site["is_observed"]}
        problem = auxiliary_problem(guide, args, kwargs, guide_latents, drawn)
        if problem is not None:
            raise ValueError(" ".join(problem[1:]))
        for site in (*guide_latents.values(), *model_all.values()):
            check_batch_shape(site)
        estimate = estimated_site(model_sites)
        if estimate is not None:
            with torch.enable_grad():
                scored = [_scored(sites) for sites in plainly()]
                log_q, log_p = (
                    {n: log_prob(s) for n, s in each.items() if n in guide_latents}
                    for each in scored
                )
            refuse_other_draws(estimate, log_p, log_q)
        dims = [
            f.dim for s in (*guide_latents.values(), *model_all.values()) for f in plate_frames(s)
        ]
        score_sites = tuple(
            name
            for name, site in guide_latents.items()
            if not getattr(site["fn"], "has_rsample", False)
        )
        run = repeated_run(plainly, (guide_sites, model_sites))
        rows = row_plates(model, guide, batch=args, kwargs=kwargs)
        plate, joint_reason, candidates, mixed = _independent_plate(
            run,
            (guide_latents, model_all),
            enumerated,
            rows,
            any_plate or num_rows(args) is None,
            bool(score_sites),
        )
        unaffected = {
            name: unaffected_terms(run, name, guide_latents)
            for name in _drawn_before_others(guide_latents, score_sites)
        }
    return PairStructure(
        nesting=-min(dims, default=0),
        data_plate=plate,
        row_plates=rows.names,
        joint_reason=joint_reason,
        enumerated=frozenset(enumerated),
        constant=frozenset(candidates) if plate is not None else frozenset(),
        latents={name: family(site["fn"]) for name, site in guide_latents.items()},
        score_sites=score_sites,
        straight_through=tuple(n for n, s in guide_latents.items() if is_straight_through(s["fn"])),
        estimate=estimate,
        marked=tuple(n for n, site in guide_latents.items() if _is_enumerated(site)),
        factors=factors,
        mixed=mixed,
        unaffected=unaffected,
    )


def _drawn_before_others(guide: Sites, score_sites: tuple[str, ...]) -> list[str]:
    """The score sites in plates that a later draw is not in."""
    plates = {name: {f.name for f in plate_frames(site)} for name, site in guide.items()}
    order = list(guide)
    return [
        name
        for name in score_sites
        if any(not plates[name] <= plates[n] for n in order[order.index(name) + 1 :])
    ]


def _is_enumerated(site: Any) -> bool:
    marked = site["infer"].get("enumerate") is not None
    return marked and bool(getattr(site["fn"], "has_enumerate_support", False))


def is_factor(site: Any) -> bool:
    """True for a site of `pyro.factor`."""
    return bool(site["is_observed"]) and isinstance(unwrap(site["fn"]), Unit)


def _refuse_density_factor(factors: tuple[str, ...], guide: Sites, model: Sites) -> None:
    """Refuse factors that may be the density of a transformed draw: a Jacobian."""
    auxiliary = [name for name in guide if name not in model]
    points = [name for name, site in guide.items() if is_point(site["fn"])]
    if factors and auxiliary and points:
        raise ValueError(
            f"Guide site '{factors[0]}' is a pyro.factor beside the draw '{auxiliary[0]}' that "
            f"only the guide has and the point '{points[0]}': it may be part of their density, or "
            "a penalty. Give the density to the point: Delta(value, log_density=...)."
        )


def _scored(sites: Sites) -> Sites:
    return {name: site for name, site in sites.items() if is_scored(site)}


def _check_sites(guide: Sites, model: Sites) -> list[str]:
    """Names of the model's sites to enumerate; raises if guide and model do not match."""
    latents = [name for name, site in model.items() if not site["is_observed"]]
    missing = [name for name in latents if name not in guide]
    enumerated = [name for name in missing if model[name]["infer"].get("enumerate") == "parallel"]
    unmarked = [name for name in missing if name not in enumerated]
    if unmarked:
        discrete = [n for n in unmarked if getattr(model[n]["fn"], "has_enumerate_support", False)]
        remedy = "Sample them in the guide"
        if discrete == unmarked:
            remedy += ', or mark them infer={"enumerate": "parallel"} to sum them out exactly'
        raise ValueError(
            f"The guide samples {sorted(guide)} but the model's latents are {sorted(latents)}: "
            f"missing {sorted(unmarked)}. {remedy}."
        )
    for name, site in guide.items():
        if site["is_observed"]:
            raise ValueError(
                f"Guide site '{name}' is observed, but a guide only samples. Remove obs= from it."
            )
        if family(site["fn"]) == "Rejector":
            raise ValueError(
                f"Guide site '{name}' is a rejection sampler (Rejector), whose gradient no "
                "estimator supports. Use a distribution with a reparameterized draw."
            )
        if name not in latents and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"The guide samples '{name}', which is not a latent site of the model "
                f"({sorted(latents)}). Rename it, or mark it infer={{'is_auxiliary': True}}."
            )
        if name in latents:
            _require_same_kind(name, site["fn"], model[name]["fn"])
        if name in latents and site["fn"].event_dim != model[name]["fn"].event_dim:
            raise ValueError(
                f"Site '{name}' has event dimension {model[name]['fn'].event_dim} in the model and "
                f"{site['fn'].event_dim} in the guide. Use the same .to_event() in both."
            )
    return enumerated


def _require_same_kind(name: str, guide_fn: Any, model_fn: Any) -> None:
    """Refuse a density against a probability: their ratio is no importance weight."""
    kinds = is_discrete(guide_fn), is_discrete(model_fn)
    if None in kinds or kinds[0] == kinds[1]:
        return
    words = ["discrete" if kind else "continuous" for kind in kinds]
    raise ValueError(
        f"Site '{name}' is {words[1]} in the model ({family(model_fn)}) and {words[0]} in the "
        f"guide ({family(guide_fn)}), so log p - log q is no log-weight. Use one kind in both."
    )


def _independent_plate(
    run: Run,
    sites: tuple[Sites, Sites],
    enumerated: list[str],
    rows: RowPlates,
    any_plate: bool,
    all_plates: bool,
) -> tuple[frozenset[str] | None, str | None, list[str], dict[str, tuple[str, str]]]:
    """As `_find_data_plate`, where the dependence of sites permits it; and `PairStructure.mixed`.

    Plates beside the data plate are tested for `all_plates`, and where sites are summed out.
    """
    guide, model = sites
    plate, reason, candidates = _find_data_plate(guide, model, enumerated, rows, any_plate)
    if not guide and not enumerated:
        return plate, reason, candidates, {}
    if plate is not None and candidates:
        reason = dependence_outside(run, candidates, enumerated, _listed(plate))
        plate = plate if reason is None else None
    tested = [] if plate is None else [plate]
    if all_plates or enumerated:
        others = _plates_of_draws({**model, **guide}, [*guide, *enumerated])
        tested += [frozenset({name}) for name in others if name not in (plate or ())]
    mixed = mixed_plates(run, tested, enumerated)
    if plate is not None and not plate.isdisjoint(mixed):
        role, name = next(mixed[each] for each in sorted(plate) if each in mixed)
        reason = f"site '{name}' of the {role} in one row of {_listed(plate)} depends on draws"
        return None, f"{reason} of other rows", candidates, mixed
    return plate, reason, candidates, mixed


def _find_data_plate(
    guide: Sites, model: Sites, enumerated: list[str], rows: RowPlates, any_plate: bool
) -> tuple[frozenset[str] | None, str | None, list[str]]:
    """(data plate, reason for a joint weight, sites outside the plate that may be constant)."""
    sites = {**model, **guide}
    latents = [*guide, *enumerated]
    names = {f.name for s in sites.values() for f in plate_frames(s)}
    plate = frozenset(rows.names & names)
    if not plate and rows.undecided:
        return None, f"each of the nested plates {sorted(rows.undecided)} has the rows", []
    if not plate and any_plate:
        plate = _outermost_common_plate(sites, latents or list(sites))
    if not plate:
        return None, "no plate over the rows holds all latent sites", []

    def inside(site: Any) -> bool:
        return any(f.name in plate for f in plate_frames(site))

    for name in guide:
        if name in model and inside(guide[name]) != inside(model[name]):
            where = "model" if inside(model[name]) else "guide"
            other = "guide" if where == "model" else "model"
            raise ValueError(
                f"Site '{name}' is inside {_listed(plate)} in the {where} but not in the {other}. "
                f"Open the same plate around it in the {other}."
            )
    for name in latents:
        if not inside(sites[name]) and (name in enumerated or not is_point(guide[name]["fn"])):
            return None, f"latent site '{name}' is outside {_listed(plate)}", []
    return plate, None, [name for name, site in sites.items() if not inside(site)]


def _outermost_common_plate(sites: Sites, names: list[str]) -> frozenset[str]:
    if not names:
        return frozenset()
    first, *others = ([f.name for f in plate_frames(sites[name])] for name in names)
    common = (name for name in first if all(name in frames for frames in others))
    return frozenset(list(common)[:1])


def _listed(plate: frozenset[str]) -> str:
    return "plate " + " or ".join(f"'{name}'" for name in sorted(plate))


def _plates_of_draws(sites: Sites, latents: list[str]) -> list[str]:
    """Names of the plates around random draws, outermost first."""
    names = [
        f.name for n in latents if not is_point(sites[n]["fn"]) for f in plate_frames(sites[n])
    ]
    return list(dict.fromkeys(names))
