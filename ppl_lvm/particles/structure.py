"""What a pair of model and guide is, found out once: its datum, its particles, its site kinds.

One plain run of guide and model, which leaves the random numbers of later steps as they were,
decides:

- which plate is the datum. The plate "data", else the one outermost plate that holds every latent
  site. If it holds all that is random, there is one log-weight per particle and datum.
- If something random stands outside of it (a global latent, several sibling plates), all
  log-densities of a particle make one joint log-weight.
- A site outside the plate that is the same whatever is drawn (a log-prior of parameters, a
  point estimate) is an offset of the bound and takes no part in the weights.
- which discrete sites only the model has: they must be marked for enumeration, and are summed out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import family, is_point
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.particles.bound_estimate import estimated_site, refuse_other_draws
from ppl_lvm.particles.tracing import (
    Given,
    Sites,
    check_batch_shape,
    is_scored,
    log_prob,
    plate_frames,
    trace_program,
)
from ppl_lvm.programs.minibatch import DATA_PLATE

Program = Callable[..., Any]


@dataclass(frozen=True)
class PairStructure:
    """The structure of a pair, constant over training steps.

    Attributes:
        nesting: dimensions that the program's plates take.
        data_plate: plate whose rows each have a log-weight of their own; None if the log-weight
            is joint.
        joint_reason: why it is joint; None if it is not.
        enumerated: discrete sites that only the model has, summed out exactly.
        constant: sites outside the data plate that no draw changes.
        latents: distribution family by guide site, in order of drawing.
        score_sites: the guide's sites without a reparameterised draw.
        vectorized: whether particles run in one vectorised pass.
        estimate: the model's site that estimates a bound, see `estimate`; None if there is none.
    """

    nesting: int
    data_plate: str | None
    joint_reason: str | None
    enumerated: frozenset[str]
    constant: frozenset[str]
    latents: dict[str, str]
    score_sites: tuple[str, ...]
    vectorized: bool = False
    estimate: str | None = None


@contextmanager
def without_side_effects() -> Iterator[None]:
    """Run programs without gradients and give the random number generators back as they were."""
    state = pyro.util.get_rng_state()
    with preserve_rng(), torch.no_grad():
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)


def run_plainly(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Sites, Sites]:
    """One draw of the guide, and the model on it: their sites."""
    guide_sites = trace_program(guide, args, kwargs, particles=None, nesting=0)
    given = Given({name: site["value"] for name, site in guide_sites.items()})
    model_sites = trace_program(model, args, kwargs, particles=None, nesting=0, given=given)
    return guide_sites, model_sites


def analyze_pair(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> PairStructure:
    """Find the structure of a pair, or say which site does not fit and what to do.

    Runs the pair plainly (more than once if a site stands outside the data plate). Programs are
    taken to have a static structure: the same sites in the same plates at every call.
    """
    with without_side_effects():
        guide_sites, model_sites = run_plainly(model, guide, args, kwargs)
        guide_latents = _scored(guide_sites)
        model_all = _scored(model_sites)
        enumerated = _check_sites(guide_latents, model_all)
        for site in (*guide_latents.values(), *model_all.values()):
            check_batch_shape(site, log_prob(site).shape, None)
        estimate = estimated_site(model_sites)
        if estimate is not None:
            drawn = {n: log_prob(site) for n, site in model_all.items() if n in guide_latents}
            scored = {n: log_prob(site) for n, site in guide_latents.items()}
            refuse_other_draws(estimate, drawn, scored)
        dims = [
            f.dim for s in (*guide_latents.values(), *model_all.values()) for f in plate_frames(s)
        ]
        plate, because, candidates = _find_data_plate(guide_latents, model_all, enumerated)
        if plate is not None and candidates:
            moved = _site_that_moves(
                model, guide, args, kwargs, candidates, (guide_sites, model_sites)
            )
            if moved is not None:
                because = f"site '{moved}' outside plate '{plate}' depends on what is drawn"
                plate = None
    return PairStructure(
        nesting=-min(dims, default=0),
        data_plate=plate,
        joint_reason=because,
        enumerated=frozenset(enumerated),
        constant=frozenset(candidates) if plate is not None else frozenset(),
        latents={name: family(site["fn"]) for name, site in guide_latents.items()},
        score_sites=tuple(
            name
            for name, site in guide_latents.items()
            if not getattr(site["fn"], "has_rsample", False)
        ),
        estimate=estimate,
    )


def _scored(sites: Sites) -> Sites:
    return {name: site for name, site in sites.items() if is_scored(site)}


def _check_sites(guide: Sites, model: Sites) -> list[str]:
    """Names of the model's sites to enumerate; raises where guide and model do not match."""
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
            raise ValueError(f"Guide site '{name}' is observed; a guide draws, it does not score.")
        if family(site["fn"]) == "Rejector":
            raise ValueError(
                f"Guide site '{name}' is drawn by rejection (Rejector), whose gradient has parts "
                "no estimator here has. Use a distribution with a reparameterised draw."
            )
        if site["infer"].get("enumerate") is not None:
            raise ValueError(
                f"Guide site '{name}' is marked for enumeration, but estimators draw the guide's "
                "sites. Leave it out of the guide to sum it out exactly, or remove the mark."
            )
        if name not in latents and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"The guide samples '{name}', which is no latent site of the model "
                f"({sorted(latents)}). Rename it, or mark it infer={{'is_auxiliary': True}}."
            )
        if name in latents and site["fn"].event_dim != model[name]["fn"].event_dim:
            raise ValueError(
                f"Site '{name}' has event dimension {model[name]['fn'].event_dim} in the model and "
                f"{site['fn'].event_dim} in the guide. Make both alike with .to_event()."
            )
    return enumerated


def _find_data_plate(
    guide: Sites, model: Sites, enumerated: list[str]
) -> tuple[str | None, str | None, list[str]]:
    """(data plate, why the weight is joint, sites outside the plate that might be constant)."""
    sites = {**model, **guide}
    latents = [*guide, *enumerated]
    outer = _outermost_common_plate(sites, latents or list(sites))
    if any(f.name == DATA_PLATE for s in sites.values() for f in plate_frames(s)):
        outer = DATA_PLATE
    if outer is None:
        return None, "no plate holds all latent sites", []

    def holds(site: Any) -> bool:
        return any(f.name == outer for f in plate_frames(site))

    for name in guide:
        if name in model and holds(guide[name]) != holds(model[name]):
            where = "model" if holds(model[name]) else "guide"
            other = "guide" if where == "model" else "model"
            raise ValueError(
                f"Site '{name}' is inside plate '{outer}' in the {where} but not in the {other}. "
                f"Open the same plate around it in the {other}."
            )
    for name in latents:
        if not holds(sites[name]) and (name in enumerated or not is_point(guide[name]["fn"])):
            return None, f"latent site '{name}' stands outside plate '{outer}'", []
    return outer, None, [name for name, site in sites.items() if not holds(site)]


def _outermost_common_plate(sites: Sites, names: list[str]) -> str | None:
    if not names:
        return None
    first, *others = ([f.name for f in plate_frames(sites[name])] for name in names)
    return next((plate for plate in first if all(plate in o for o in others)), None)


def _site_that_moves(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    candidates: list[str],
    first: tuple[Sites, Sites],
    num_runs: int = 3,
) -> str | None:
    """The first candidate site that differs between runs, None if all stay the same."""
    subsamples = {
        n: s["value"] for sites in first for n, s in sites.items() if site_is_subsample(s)
    }
    for _ in range(num_runs):
        with Given(subsamples):
            again = run_plainly(model, guide, args, kwargs)
        for name in candidates:
            for before, after in zip(first, again, strict=True):
                if name in before and not _same_site(before[name], after[name]):
                    return name
    return None


def _same_site(a: Any, b: Any) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = [(log_prob(a), log_prob(b)), (a["value"], b["value"])]
    return all(torch.equal(x, y) for x, y in pairs)
