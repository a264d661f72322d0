"""Do the guide's sites answer the model's, with the same shapes in the same plates?"""

import difflib
from collections.abc import Iterator

import torch
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns
from ppl_lvm.core.distributions import added_event_dims
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature, Site


def check_sites(look: TrialRuns) -> Iterator[Issue]:
    """Sites missing in either, observed sites in the guide, discrete latents left alone."""
    model, guide = look.model.signature, look.guide.signature
    assert model is not None
    assert guide is not None
    nodes = look.guide.nodes()
    missing = [site for site in model.latents if site.name not in guide]
    if not model.observed:
        yield _nothing_observed(look.model)
    for site in guide.sites:
        if nodes[site.name]["infer"].get("is_auxiliary") or site.distribution == "Unit":
            continue  # a helper of the guide's own, or a pyro.factor
        if site.observed:
            yield look.guide.finding(
                "guide-observes",
                "error",
                site.name,
                f"The guide observes {site.name!r}.",
                "A guide is a distribution over latents; data enters it as its argument.",
                f"Remove pyro.sample({site.name!r}, ...) from the guide, or its obs= if it is a "
                "latent of the model.",
            )
        elif site.name in model and model[site.name].observed:
            yield look.guide.finding(
                "observed-in-guide",
                "error",
                site.name,
                f"The guide samples {site.name!r}, which the model observes.",
                "Its log-probability would be taken from the bound though nothing is inferred.",
                f"Remove pyro.sample({site.name!r}, ...) from the guide.",
            )
        elif site.name not in model and not _one_row_of(site, missing, guide):
            meant = _meant(site, missing)
            # One fault, one finding: under its right name the site would not be missing.
            missing = [other for other in missing if other is not meant]
            yield _extra(look, site, meant, model)
    for site in missing:
        yield from _missing(look, site)


def _nothing_observed(model: TrialRun) -> Issue:
    """A model without data; `pyro.deterministic` only looks like an observation."""
    assert model.trace is not None
    stated = [n for n, s in model.trace.nodes.items() if s.get("infer", {}).get("_deterministic")]
    site = stated[-1] if stated else None
    said = "no pyro.sample has obs="
    if site is not None:
        said = f"{site!r} is a pyro.deterministic, which notes a value and has no density"
    return model.finding(
        "nothing-observed",
        "error",
        site,
        f"The model observes nothing: {said}.",
        "The guide would be fitted to the prior, whatever the data says.",
        f"pyro.sample({site or 'x'!r}, ..., obs=x)",
    )


def _meant(site: Site, missing: list[Site]) -> Site | None:
    """The latent that a site of the guide was meant for: the nearest name, or the only one."""
    near = difflib.get_close_matches(site.name, [other.name for other in missing], 1, 0.5)
    if not near and len(missing) != 1:
        return None
    return next((other for other in missing if [other.name] == near), missing[0])


def _one_row_of(site: Site, missing: list[Site], guide: Signature) -> bool:
    """Whether a site stands for one row of a missing latent: z_3 in a sequential plate, for z."""
    sequential = any(guide.plate(name).dim is None for name in site.plates)
    return sequential and any(site.name.startswith(other.name) for other in missing)


def _extra(look: TrialRuns, site: Site, meant: Site | None, model: Signature) -> Issue:
    names = [latent.name for latent in model.latents]
    remedy = f"The model calls it: pyro.sample({meant.name!r}, ...)." if meant else "Remove it."
    return look.guide.finding(
        "missing-in-model",
        "error",
        site.name,
        f"The guide samples {site.name!r}, but the model's latents are {names}.",
        "The model never reads its value, and its log-probability makes the bound wrong.",
        f"{remedy} A helper of the guide's own takes infer={{'is_auxiliary': True}}.",
    )


def _missing(look: TrialRuns, site: Site) -> Iterator[Issue]:
    if site.enumerate in ("parallel", "sequential") and site.values is not None:
        return
    if site.discrete and site.values is not None:
        yield look.model.finding(
            "discrete-not-enumerated",
            "error",
            site.name,
            f"Nobody enumerates, samples or relaxes the discrete latent {site.name!r} "
            f"({site.values} values).",
            "The model would draw it from the prior in each step, blind to the data.",
            f"In the model: pyro.sample({site.name!r}, dist.{site.distribution}(...), "
            'infer={"enumerate": "parallel"})  # then the objective sums it out',
        )
        return
    model = look.standalone[0].signature or look.model.signature
    assert model is not None
    own = added_event_dims(look.model.nodes()[site.name]["fn"])
    event = f".to_event({own})" if own else ""
    code = f"pyro.sample({site.name!r}, dist.{site.distribution}(...){event})"
    yield look.model.finding(
        "missing-in-guide",
        "error",
        site.name,
        f"The model's latent {site.name!r} is not in the guide.",
        "The model would draw it from the prior in each step, blind to the data.",
        f"Add to the guide: {in_plates(code, site, model)}",
    )


def in_plates(code: str, site: Site, signature: Signature) -> str:
    """`code` inside the plates of `site`, as one would write it."""
    for name in reversed(site.plates):
        plate = signature.plate(name)
        size = "len(x)" if name == DATA_PLATE else plate.size
        dim = "" if plate.dim is None else f", dim={plate.dim}"
        code = f"with pyro.plate({name!r}, {size}{dim}): {code}"
    return code


def check_shapes(look: TrialRuns) -> Iterator[Issue]:
    """Event dimensions, shapes and plates of the sites that both have."""
    model, guide = look.standalone[0].signature or look.model.signature, look.guide.signature
    assert model is not None
    assert guide is not None
    for site in guide.sites:
        if site.name not in model or model[site.name].observed or site.observed:
            continue
        theirs = model[site.name]
        if len(site.event_shape) != len(theirs.event_shape):
            yield _event_dim(look, site, theirs)
        elif _dims(site, guide) != _dims(theirs, model):  # by name: the order is no matter
            yield _plates(look, site, theirs, guide, model)
        elif site.shape != theirs.shape:
            yield look.guide.finding(
                "shape",
                "error",
                site.name,
                f"{site.name!r} has shape {tuple(site.shape)} in the guide and "
                f"{tuple(theirs.shape)} in the model.",
                "Broadcasting would pair values with densities that are not theirs.",
                f"In the guide: pyro.sample({site.name!r}, dist.{site.distribution}(...)), its "
                f"parameters of shape {tuple(theirs.event_shape)}, or {tuple(theirs.shape)} with "
                "the rows.",
            )
    yield from _values(look.standalone[0] if look.standalone[0].signature else look.model)


def _values(one: TrialRun) -> Iterator[Issue]:
    """Observed values of another shape than their distribution's, which would broadcast."""
    for name, node in one.nodes().items():
        fn, value = node["fn"], node["value"]
        if not node["is_observed"] or not isinstance(value, Tensor) or site_is_factor(node):
            continue
        expected, got = fn.batch_shape + fn.event_shape, value.shape
        try:
            fits = torch.broadcast_shapes(got, expected) == expected
        except RuntimeError:
            fits = False
        if not fits:
            yield one.finding(
                "value-shape",
                "error",
                name,
                f"{name!r} observes values of shape {tuple(got)}, where its distribution has "
                f"{tuple(expected)}.",
                "Every value would be compared with every row's distribution.",
                _as_shaped(name, got, expected),
            )


def _as_shaped(name: str, got: torch.Size, expected: torch.Size) -> str:
    if got == (*expected, 1):
        return f"pyro.sample({name!r}, ..., obs=x.squeeze(-1)), x being what is observed there."
    if len(got) > len(expected) and got[: len(expected)] == expected:
        more = len(got) - len(expected)
        parameters = tuple(got[len(expected) :])
        return (
            f"pyro.sample({name!r}, dist.….to_event({more}), obs=x), with parameters of shape "
            f"{parameters}, so that a row is one event."
        )
    return f"pyro.sample({name!r}, ..., obs=x) with x of shape {tuple(expected)}."


def _event_dim(look: TrialRuns, site: Site, theirs: Site) -> Issue:
    own = added_event_dims(look.guide.nodes()[site.name]["fn"])
    own += len(theirs.event_shape) - len(site.event_shape)
    event = f".to_event({own})" if own > 0 else ""
    return look.guide.finding(
        "event-dim",
        "error",
        site.name,
        f"{site.name!r} has event shape {tuple(site.event_shape)} in the guide and "
        f"{tuple(theirs.event_shape)} in the model.",
        "One log-probability stands for an event: they would be summed over different things.",
        f"In the guide: pyro.sample({site.name!r}, dist.{site.distribution}(...){event}), so that "
        f"an event is {tuple(theirs.event_shape)}.",
    )


def _plates(look: TrialRuns, site: Site, theirs: Site, guide: Signature, model: Signature) -> Issue:
    """Plates of the same site that differ by name, dim or size."""
    code = in_plates(f"pyro.sample({site.name!r}, ...)", theirs, model)
    return look.guide.finding(
        "plates",
        "error",
        site.name,
        f"{site.name!r} stands in {_named(site, guide)} in the guide and in "
        f"{_named(theirs, model)} in the model.",
        "Plates say what is independent and what a mini-batch scales; the two must agree.",
        f"In the guide: {code}",
    )


def _dims(site: Site, signature: Signature) -> dict[str, tuple[int | None, int, int]]:
    plates = [signature.plate(name) for name in site.plates]
    return {plate.name: (plate.dim, plate.size, plate.full_size) for plate in plates}


def _named(site: Site, signature: Signature) -> str:
    plates = [signature.plate(name) for name in site.plates]
    listed = [f"plate {p.name!r} (dim {p.dim}, size {p.size})" for p in plates]
    return " inside ".join(reversed(listed)) or "no plate"
