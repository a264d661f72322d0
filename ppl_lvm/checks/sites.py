"""Check that the guide samples the latents of the model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns
from ppl_lvm.core.distributions import added_event_dims, family, innermost, is_point, own_masks
from ppl_lvm.core.messages import closest
from ppl_lvm.particles.auxiliary_sites import auxiliary_problem
from ppl_lvm.particles.tracing import plate_ratio
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.signatures import Signature, Site

_MANY_CONSTANTS = 32
_PRIOR = "The model would draw it from the prior in each step, independently of the data."
_OBSERVED = "Remove pyro.sample({name!r}, ...) from the guide"
_ISSUES = {  # code: severity, message, why, remedy
    "unit-latent": (
        "error",
        "{name!r} ~ Unit is not observed, and has no value that a guide could draw.",
        "A guide of it has a density of nothing.",
        "pyro.factor({name!r}, log_factor), which adds the same term and observes it.",
    ),
    "factor-in-guide": (
        "error",
        "The guide's pyro.factor({name!r}, ...) does not say whether it is reparameterized.",
        "Pyro's objectives refuse it: its gradient depends on that.",
        "pyro.factor({name!r}, ..., has_rsample=True), if its value has a gradient with respect to "
        "the draws; has_rsample=False otherwise.",
    ),
    "bound-with-factor": (
        "note",
        "The guide's pyro.factor({name!r}, ...) is part of the objective.",
        "The reported bound contains it. Unless it is the log-density of an auxiliary site, that "
        "is no bound on log p(x) and may exceed it; the log evidence of the run omits it.",
        "Compare runs by run.log_evidence(x), and not by their bounds.",
    ),
    "tempered-guide": (
        "note",
        "The guide's {name!r} has a poutine.scale, or a mask that the model's has not.",
        "log q is then not the density of the draws: the objective is no bound on log p(x) and may "
        "exceed it.",
        "Compare runs without the scale or mask.",
    ),
    "guide-observes": (
        "error",
        "The guide observes {name!r}.",
        "A guide is a distribution over latents; data enters it as its argument.",
        _OBSERVED + ", or its obs= if it is a latent of the model.",
    ),
    "observed-in-guide": (
        "error",
        "The guide samples {name!r}, which the model observes.",
        "Its log-probability would be subtracted from the bound although the site is observed.",
        _OBSERVED + ".",
    ),
    "unmasked-in-guide": (
        "error",
        "The model masks some values of {name!r}, and the guide does not.",
        "The bound would have the entropy of values that the model does not score, which has no "
        "limit.",
        "Mask them in the guide too: with poutine.mask(mask=mask): pyro.sample({name!r}, ...). The "
        "automatic guide (None) and the amortized guides of ppl_lvm.guides do.",
    ),
    "slow-density": (
        "note",
        "{name!r} ~ SineBivariateVonMises normalizes {values} distributions in each step, each by "
        "a sum of 25,000 terms (5 ms).",
        "A step takes seconds where rows are many.",
        "Where rows share concentrations and correlation, build the distribution from scalars, "
        "also its locations, and let the plate expand it; else use smaller batches, or two "
        "VonMises sites.",
    ),
    "missing-in-model": (
        "error",
        "The guide samples {name!r}, but the model's latents are {latents}.",
        "The model never reads its value, and its log-probability makes the bound wrong.",
        "{remedy} An auxiliary site takes .mask(False), infer={{'is_auxiliary': True}}.",
    ),
    "sequential-enumeration": (
        "error",
        "The model marks {name!r} for sequential enumeration, and the guide lacks it.",
        "Objectives enumerate sites of the model in parallel only.",
        "In the model: pyro.sample({name!r}, dist.{distribution}(...), "
        'infer={{"enumerate": "parallel"}})',
    ),
    "discrete-not-enumerated": (
        "error",
        "The discrete latent {name!r} ({values} values) is neither enumerated, sampled nor "
        "relaxed.",
        _PRIOR,
        "{remedy}",
    ),
    "missing-in-guide": (
        "error",
        "The model's latent {name!r} is not in the guide.",
        _PRIOR,
        "Add to the guide: {code}",
    ),
}


def _issue(trial: TrialRun, kind: str, name: str, **words: Any) -> Issue:
    severity, *texts = _ISSUES[kind]
    return trial.issue(kind, severity, name, *(text.format(name=name, **words) for text in texts))


def check_sites(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Sites missing in either program, observed sites in the guide, discrete latents."""
    model, guide = runs.model.signature, runs.guide.signature
    assert model is not None
    assert guide is not None
    nodes = runs.guide.nodes()
    for site in model.latents:
        if site.distribution == "Unit":
            yield _issue(runs.model, "unit-latent", site.name)
    missing = [site for site in model.latents if site.name not in guide]
    if not model.observed:
        yield _nothing_observed(runs.model)
    for site in guide.sites:
        if site.distribution == "Unit":
            declared = "has_rsample" in vars(nodes[site.name]["fn"])
            code = "bound-with-factor" if declared else "factor-in-guide"
            yield _issue(runs.guide, code, site.name)
            continue
        if nodes[site.name]["infer"].get("is_auxiliary") and not site.observed:
            continue
        if site.observed:
            yield _issue(runs.guide, "guide-observes", site.name)
        elif site.name in model and model[site.name].observed:
            yield _issue(runs.guide, "observed-in-guide", site.name)
        elif site.name not in model and not _one_row_of(site, missing, guide):
            match = _closest(site, missing)
            # One fault, one issue: with the right name the site would not be missing.
            missing = [other for other in missing if other is not match]
            yield _extra(runs, site, match, model)
    for site in missing:
        yield from _missing(runs, site)
    yield from _auxiliary(runs)
    yield from _tempered(runs)
    yield from _costly(runs)


def _tempered(runs: TrialRuns) -> Iterator[Issue]:
    """Latents that one of the programs masks or scales and the other does not."""
    p_nodes, q_nodes = runs.model.nodes(), runs.guide.nodes()
    # Pyro's automatic guides draw auxiliary sites, whose functions are points.
    transforms = any(q["infer"].get("is_auxiliary") for q in q_nodes.values())
    for name, q in q_nodes.items():
        if name not in p_nodes or (is_point(q["fn"]) and not transforms):
            continue
        p_masked, q_masked = (
            s["mask"] is not None or next(own_masks(s["fn"]), None) is not None
            for s in (p_nodes[name], q)
        )
        scale = torch.as_tensor(q["scale"] / plate_ratio(q))
        if isinstance(mask := p_nodes[name]["mask"], Tensor) and not (mask.all() or q_masked):
            yield _issue(runs.guide, "unmasked-in-guide", name)
        elif (q_masked and not p_masked) or not torch.allclose(scale, torch.ones_like(scale)):
            yield _issue(runs.guide, "tempered-guide", name)


def _costly(runs: TrialRuns) -> Iterator[Issue]:
    """Densities whose normalization takes most of a step."""
    for trial in (runs.model, runs.guide):
        for name, node in trial.nodes().items():
            if family(node["fn"]) != "SineBivariateVonMises":
                continue
            constants: Tensor = innermost(node["fn"]).norm_const
            values = constants.untyped_storage().nbytes() // constants.element_size()
            if values >= _MANY_CONSTANTS:
                yield _issue(trial, "slow-density", name, values=values)


def _auxiliary(runs: TrialRuns) -> Iterator[Issue]:
    """An auxiliary site of the guide whose density makes the bound wrong."""
    latents = {n: s for n, s in runs.model.nodes().items() if not s["is_observed"]}
    with dry_run(*runs.programs, seed=0):
        problem = auxiliary_problem(runs.programs[1], runs.batch, {}, runs.guide.nodes(), latents)
    if problem is not None:
        name, message, remedy = problem
        why = "The bound would exceed log p(x)."
        yield runs.guide.issue("auxiliary-site", "error", name, message, why, remedy)


def _nothing_observed(model: TrialRun) -> Issue:
    """A model without data; `pyro.deterministic` is no observation."""
    assert model.trace is not None
    nodes = model.trace.nodes.items()
    deterministic = [n for n, node in nodes if node.get("infer", {}).get("_deterministic")]
    site = deterministic[-1] if deterministic else None
    reason = "no pyro.sample has obs="
    if site is not None:
        reason = f"{site!r} is a pyro.deterministic, which records a value without a density"
    return model.issue(
        "nothing-observed",
        "error",
        site,
        f"The model observes nothing: {reason}.",
        "The guide would be fitted to the prior, for all data.",
        f"pyro.sample({site or 'x'!r}, ..., obs=x)",
    )


def _closest(site: Site, missing: list[Site]) -> Site | None:
    """The missing latent of the closest name, or the only missing one."""
    name = closest(site.name, [other.name for other in missing], cutoff=0.5)
    if name is None and len(missing) != 1:
        return None
    return next((other for other in missing if other.name == name), missing[0])


def _one_row_of(site: Site, missing: list[Site], guide: Signature) -> bool:
    """True if a site is one row of a missing latent: z_3 in a sequential plate, for z."""
    sequential = any(guide.plate(name).dim is None for name in site.plates)
    return sequential and any(site.name.startswith(other.name) for other in missing)


def _extra(runs: TrialRuns, site: Site, match: Site | None, model: Signature) -> Issue:
    remedy = f"The model calls it: pyro.sample({match.name!r}, ...)." if match else "Remove it."
    latents = [latent.name for latent in model.latents]
    return _issue(runs.guide, "missing-in-model", site.name, latents=latents, remedy=remedy)


def _missing(runs: TrialRuns, site: Site) -> Iterator[Issue]:
    if site.enumerate == "parallel" and site.values is not None:
        return
    if site.enumerate == "sequential" and site.values is not None:
        yield _issue(
            runs.model, "sequential-enumeration", site.name, distribution=site.distribution
        )
        return
    if site.discrete and site.values is not None:
        remedy = (
            "Wrap the model: pyro.infer.config_enumerate(model). Pyro does not pass infer= on "
            "beside obs_mask=."
            if site.from_obs_mask
            else f"In the model: pyro.sample({site.name!r}, dist.{site.distribution}(...), "
            'infer={"enumerate": "parallel"})  # the objective then enumerates it'
        )
        yield _issue(
            runs.model, "discrete-not-enumerated", site.name, values=site.values, remedy=remedy
        )
        return
    model = runs.standalone[0].signature or runs.model.signature
    assert model is not None
    dims = added_event_dims(runs.model.nodes()[site.name]["fn"])
    event = f".to_event({dims})" if dims else ""
    code = f"pyro.sample({site.name!r}, dist.{site.distribution}(...){event})"
    placed = in_plates(code, site, model)
    yield _issue(runs.model, "missing-in-guide", site.name, code=placed)


def in_plates(code: str, site: Site, signature: Signature) -> str:
    """`code` inside the plates of `site`."""
    for name in reversed(site.plates):
        plate = signature.plate(name)
        size = "len(x)" if plate.over_rows else str(plate.size)
        if plate.full_size != plate.size:
            size = f"{plate.full_size}, subsample_size={plate.size}"
        dim = "" if plate.dim is None else f", dim={plate.dim}"
        code = f"with pyro.plate({name!r}, {size}{dim}): {code}"
    return code
