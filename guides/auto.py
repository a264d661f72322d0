"""Automatic choice of a guide: `auto_guide(model, *batch)`.

    discrete, marked for enumeration      no factor: the objective enumerates them
    local and continuous                  AmortizedNormal: one encoder for all rows
    local, all of them on a simplex       AmortizedDirichlet: also into corners of the simplex
    local, with too many values to sum    AmortizedCategorical, if its families include them
    both of these                         AmortizedJoint: the sites depend on each other
    global and continuous                 GlobalNormal: mean-field factors

`local="AmortizedFlow"` takes another guide for the local sites: any that accepts a signature.

A model with a fixed guide (a diffusion) brings it: `model.default_guide(*batch)`.

`str(guide)` describes the choice in one sentence.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pyro.distributions import constraints
from pyro.nn import PyroModuleList

from ppl_lvm import guides
from ppl_lvm.authoring import Signature, Site, signature
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.messages import did_you_mean
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.parts.global_part import without_sites
from ppl_lvm.guides.parts.site_guide import Latents, SiteGuide, serving
from ppl_lvm.guides.parts.support_transform import enumerated, require_density_of_draws
from ppl_lvm.guides.parts.variational_families import DiscreteFactor

ALL_KINDS = (Latents.LOCAL_CONTINUOUS, Latents.LOCAL_DISCRETE, Latents.GLOBAL_CONTINUOUS)


class AutoGuide(SiteGuide):
    """Several guides, each for some of the sites, run one after the other.

    Attributes:
        reason: one sentence that describes the guides of the sites.
    """

    def __init__(self, parts: Sequence[Any], model_signature: Signature, reason: str) -> None:
        super().__init__()
        self._signature = model_signature
        self.sites = [site for part in parts for site in part.sites]
        self.parts = PyroModuleList(parts)
        self.reason = reason

    def draw(self, plates: dict[str, Any], *batch: Any) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        for part in self.parts:
            part.draw(plates, *batch)

    def __str__(self) -> str:
        return self.reason


def local_guides() -> dict[str, Any]:
    """Name -> guide of local sites that accepts a signature, among those of the package."""
    classes = {name: getattr(guides, name) for name in guides.__all__}
    return {name: cls for name, cls in classes.items() if getattr(cls, "accepts_signature", False)}


@serving(*ALL_KINDS, description="a guide for every site")
@checked
def auto_guide(
    model: Callable[..., Any],
    *batch: Any,
    hidden: tuple[Count, ...] = (128,),
    local: str | None = None,
) -> Any:
    """Choose a guide for the latents that `model(*batch)` declares.

    Args:
        model: any model.
        batch: its arguments.
        hidden: widths of the encoder's hidden layers, if there is one.
        local: name of the guide of the local sites; None chooses.

    Raises:
        ValueError: for a latent that no guide serves, naming it and the remedy.
    """
    available = local_guides()
    if local is not None and local not in available:
        raise ValueError(
            f"auto_guide: local={local!r} is no guide for local sites. Use one of "
            f"{', '.join(available)}.{did_you_mean(local, available)}"
        )
    default_guide = getattr(model, "default_guide", None)
    if default_guide is not None:
        return default_guide(*batch)
    model_signature = signature(model, *batch)
    sampled = [site for site in model_signature.latents if not enumerated(site)]
    local_sites = [site for site in sampled if site.local]
    global_sites = [site for site in sampled if not site.local]
    for site in sampled:
        require_density_of_draws(site)
        if site.discrete and not (site.local and (local or _has_discrete_factor(site))):
            raise ValueError(_unserved(site))
    parts: list[Any] = []
    if global_sites:
        parts.append(GlobalNormal(model, *batch))
    if local_sites:
        guide = available[local or _suitable(local_sites)]
        rest = without_sites(model_signature, {site.name for site in global_sites})
        options = {"hidden": hidden} if "hidden" in inspect.signature(guide).parameters else {}
        parts.append(guide(rest, *batch, **options))
    return AutoGuide(parts, model_signature, _reason(model_signature, parts))


def _has_discrete_factor(site: Site) -> bool:
    """True if it has too many values to enumerate, and a family that an encoder can sample."""
    return site.values is None and site.distribution in DiscreteFactor.families


def _suitable(local_sites: list[Site]) -> str:
    """Name of the guide for the local sites."""
    kinds = {site.discrete for site in local_sites}
    if all(isinstance(site.support, type(constraints.simplex)) for site in local_sites):
        return "AmortizedDirichlet"
    if kinds == {True, False}:
        return "AmortizedJoint"
    return "AmortizedCategorical" if kinds == {True} else "AmortizedNormal"


def _reason(model_signature: Signature, parts: list[Any]) -> str:
    clauses = [
        f"{site.name} ({site.values} values): enumerated exactly"
        for site in model_signature.latents
        if enumerated(site)
    ]
    for part in reversed(parts):
        scope = "local" if part.sites[0].local else "global"
        noun = "latent" if len(part.sites) == 1 else "latents"
        names = ", ".join(site.name for site in part.sites)
        clauses.append(f"{part.description} for the {scope} {noun} {names}")
    return f"Guide: {'; '.join(clauses) or 'empty, since the model has no latents'}."


def _unserved(site: Site) -> str:
    if site.values is None:
        return (
            f"Site {site.name!r} ~ {site.distribution}: no guide can be chosen, since it is "
            "discrete with too many values to enumerate, and AmortizedCategorical does not serve "
            "its family. Write a guide that samples it, and train with a score-function objective."
        )
    if site.from_obs_mask:
        return (
            f"Site {site.name!r} ~ {site.distribution}: it takes {site.values} values and is not "
            "enumerated, since Pyro does not pass infer= on beside obs_mask=. Wrap the model: "
            "pyro.infer.config_enumerate(model)."
        )
    return (
        f"Site {site.name!r} ~ {site.distribution}: it takes {site.values} values and is not "
        'enumerated. Add infer={"enumerate": "parallel"} to its pyro.sample (or wrap the model in '
        "pyro.infer.config_enumerate), and train with TraceEnum_ELBO."
    )
