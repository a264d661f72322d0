"""A sensible guide for any model: `auto_guide(model, *batch)`.

    discrete, marked for enumeration      nothing: the objective sums them out
    local and continuous                  AmortizedNormal: one encoder for all data
    local, with too many values to sum    AmortizedCategorical, if its family serves them
    both of these                         AmortizedJoint: the sites depend on each other
    shared and continuous                 GlobalNormal: a distribution each

`local="AmortizedFlow"` takes another guide of one encoder for the local sites.

A model whose guide is settled (a diffusion's) brings it: `model.default_guide(*batch)`.

`str(guide)` says in one sentence what was chosen and why.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pyro.nn import PyroModule, PyroModuleList

from ppl_lvm.guides.amortized import AmortizedNormal
from ppl_lvm.guides.amortized_categorical import AmortizedCategorical
from ppl_lvm.guides.amortized_flow import AmortizedFlow
from ppl_lvm.guides.amortized_joint import AmortizedJoint
from ppl_lvm.guides.amortized_joint_normal import AmortizedJointNormal
from ppl_lvm.guides.amortized_low_rank import AmortizedLowRank
from ppl_lvm.guides.amortized_multivariate import AmortizedMultivariateNormal
from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.parts.support_transform import enumerated, open_plates
from ppl_lvm.guides.parts.variational_families import Values
from ppl_lvm.programs.signatures import Signature, Site, signature

LOCAL = {
    guide.__name__: guide
    for guide in (
        AmortizedCategorical,
        AmortizedFlow,
        AmortizedJoint,
        AmortizedJointNormal,
        AmortizedLowRank,
        AmortizedMultivariateNormal,
        AmortizedNormal,
    )
}


class AutoGuide(PyroModule):
    """Several guides, each for its own sites, run one after the other.

    Attributes:
        reason: one sentence: what was chosen and why.
    """

    def __init__(self, parts: Sequence[Any], declared: Signature, reason: str) -> None:
        super().__init__()
        self._signature = declared
        self._sites = [site for part in parts for site in part.sites]
        self.parts = PyroModuleList(parts)
        self.reason = reason

    def forward(self, *batch: Any) -> None:
        rows = len(batch[0]) if batch else 0
        plates = open_plates(self._sites, self._signature, rows)
        for part in self.parts:
            part.draw(plates, *batch)

    def __str__(self) -> str:
        return self.reason


def auto_guide(
    model: Callable[..., Any],
    *batch: Any,
    hidden: tuple[int, ...] = (128,),
    local: str | None = None,
) -> PyroModule:
    """Choose a guide for the latents that `model(*batch)` declares.

    Args:
        model: any model.
        batch: what it is called with.
        hidden: widths of the encoder's hidden layers, if there is one.
        local: the guide of the local sites, one of `LOCAL`; None chooses.

    Raises:
        ValueError: for a latent that no guide here serves, naming it and the remedy.
    """
    if local is not None and local not in LOCAL:
        raise ValueError(f"local={local!r} is no guide of one encoder; choose {', '.join(LOCAL)}.")
    settled = getattr(model, "default_guide", None)
    if settled is not None:
        return settled(*batch)
    declared = signature(model, *batch)
    summed = [site for site in declared.latents if enumerated(site)]
    sampled = [site for site in declared.latents if not enumerated(site)]
    own = [site for site in sampled if site.local]
    shared = [site for site in sampled if not site.local]
    for site in sampled:
        if site.discrete and not (site in own and (local or _drawable(site))):
            raise ValueError(_unserved(site))
    local = local or _suitable(own)
    parts: list[Any] = []
    if shared:
        parts.append(GlobalNormal(model, *batch))
    if own:
        kept = tuple(site for site in declared.sites if site not in shared)
        part = Signature(kept, declared.plates, declared.parameters)
        parts.append(LOCAL[local](part, *batch, hidden=hidden))
    return AutoGuide(parts, declared, _reason(summed, own, shared, local))


def _drawable(site: Site) -> bool:
    """Whether it has too many values to be summed out, and a family that an encoder can draw."""
    return site.values is None and site.distribution in Values.families


def _suitable(own: list[Site]) -> str:
    """The guide for the local sites."""
    kinds = {site.discrete for site in own}
    if kinds == {True, False}:
        return "AmortizedJoint"
    return "AmortizedCategorical" if kinds == {True} else "AmortizedNormal"


def _reason(summed: list[Site], own: list[Site], shared: list[Site], local: str) -> str:
    clauses = []
    if summed:
        values = ", ".join(f"{site.name} ({site.values} values)" for site in summed)
        clauses.append(f"{values} summed out, being few and marked for enumeration")
    if own:
        clauses.append(f"{_WORDS.get(local, local)} for {_names(own)}, which each datum has")
    if shared:
        clauses.append(f"a distribution of its own for each of {_names(shared)}, which all share")
    return f"Guide: {'; '.join(clauses) or 'empty, since the model has no latents'}."


_WORDS = {
    "AmortizedNormal": "one encoder with normal output",
    "AmortizedCategorical": "one encoder with a probability for every value, too many to sum out,",
    "AmortizedJoint": "one encoder and a chain of conditionals, since there are discrete and "
    "continuous ones,",
}


def _names(sites: list[Site]) -> str:
    return ", ".join(site.name for site in sites)


def _unserved(site: Site) -> str:
    if site.values is None:
        return (
            f"No guide can be chosen for {site.name!r} ~ {site.distribution}: it is discrete with "
            "too many values to enumerate, and of no family that AmortizedCategorical draws. Write "
            "a guide that samples it, and train with a score-function objective."
        )
    return (
        f"{site.name!r} ~ {site.distribution} takes {site.values} values but nobody sums it out. "
        'Add infer={"enumerate": "parallel"} to its pyro.sample (or wrap the model in '
        "pyro.infer.config_enumerate), and train with TraceEnum_ELBO."
    )
