"""What the amortised guides share: an encoder whose numbers are dealt out to the sites.

    λ_n = encoder(x_n),    q(z_n | x_n) = Π_s q_s(z_ns; λ_ns)

with λ_n = (λ_n1, λ_n2, …) in the order of the model's code. What a guide makes of a site's numbers
is its factor (`factors.py`).
"""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.guides.parts.support_transform import (
    enter_plates,
    enumerated,
    open_plates,
    require_plain_plates,
    subsamples,
)
from ppl_lvm.guides.parts.variational_families import Factor
from ppl_lvm.nn import RowEncoder
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature, Site


class EncoderGuide(PyroModule):
    """Base of the guides with one encoder whose sites are independent given x.

    Args:
        declared: the model's signature.
        factors: what each site makes of its numbers.
        batch: some rows of the data.
        encoder: called as `encoder(*batch)`, returns (B, Σ widths); None: a `RowEncoder`.
        hidden: widths of its hidden layers.
        what: the numbers of a site in words, for the error.
    """

    def __init__(
        self,
        declared: Signature,
        factors: Sequence[Factor],
        batch: tuple[Tensor, ...],
        *,
        encoder: nn.Module | None,
        hidden: tuple[int, ...],
        what: str,
    ) -> None:
        super().__init__()
        self._signature, self._factors = declared, factors
        self.sites = [factor.site for factor in factors]
        width = sum(factor.width for factor in factors)
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=width, hidden=tuple(hidden))
        self.encoder = encoder
        check_width(encoder, batch, width, [site.name for site in self.sites], what)

    def forward(self, *batch: Tensor) -> None:
        self.draw(open_plates(self.sites, self._signature, len(batch[0])), *batch)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        sample_factors(self.encoder(*batch), self._factors, plates)


def sample_factors(numbers: Tensor, factors: Sequence[Factor], plates: dict[str, Any]) -> None:
    """Sample every factor's site from its part of `numbers` (B, Σ widths), inside `plates`."""
    split = numbers.split([factor.width for factor in factors], dim=-1)
    for factor, own in zip(factors, split, strict=True):
        with enter_plates(factor.site, plates):
            pyro.sample(factor.site.name, factor(own), infer=dict(factor.infer))


def supported_sites(declared: Signature, guide: str, *, sampled: bool = False) -> list[Site]:
    """The local continuous sites; `guide` is what errors call it.

    Args:
        sampled: whether the plate "data" may draw a sub-sample of its own.

    Raises:
        ValueError: naming the first latent that is none, or if there is none to serve.
    """
    sites = []
    for site in declared.latents:
        if enumerated(site):
            continue
        if site.discrete:
            raise ValueError(f"{guide} serves continuous sites, but {_discrete(site)}")
        require_local(site, guide)
        require_plain_plates(site, declared)
        if not sampled and subsamples(declared):
            raise ValueError(
                f"{guide} encodes the rows that it is called with, but the plate {DATA_PLATE!r} "
                "draws a sub-sample of them. Write pyro.plate('data', len(x)) and call the model "
                "with the rows of a batch, as fit does; or use LocalNormal."
            )
        sites.append(site)
    if not sites:
        raise ValueError(
            f"{guide} found no continuous latent to serve: the model's latents are "
            f"{[site.name for site in declared.latents]}. Use ppl_lvm.guides:auto_guide."
        )
    return sites


def require_row(site: Site, declared: Signature, guide: str) -> None:
    """Refuse a site that stands in another plate than "data" alone, its rows at dimension -1.

    Raises:
        ValueError: naming it, and the guide that serves it.
    """
    if site.plates != (DATA_PLATE,) or declared.plate(DATA_PLATE).dim != -1:
        listed = ", ".join(map(repr, site.plates))
        raise ValueError(
            f"{guide} serves sites whose only plate is {DATA_PLATE!r}, with dim=-1, but "
            f"{site.name!r} stands in {listed}. Use AmortizedNormal, or make the other plate a "
            "dimension of the event with .to_event(1)."
        )


def require_local(site: Site, guide: str) -> None:
    """Refuse a site that all data share.

    Raises:
        ValueError: naming it, and the guide that serves it.
    """
    if not site.local:
        raise ValueError(
            f"{guide} serves sites inside the plate {DATA_PLATE!r}, but {site.name!r} "
            "is shared by all data. Use ppl_lvm.guides:auto_guide, which adds a guide for it, "
            f"or put it inside pyro.plate({DATA_PLATE!r}, len(x)) if each datum has its own."
        )


def _discrete(site: Site) -> str:
    if site.values is None:
        return (
            f"{site.name!r} ~ {site.distribution} is discrete, with too many values to enumerate. "
            "Use AmortizedJoint or AmortizedCategorical if they serve its family, or write a guide "
            "that samples it, and train with a score-function objective."
        )
    return (
        f"{site.name!r} ~ {site.distribution} is discrete. Let it be summed out: add "
        'infer={"enumerate": "parallel"} to its pyro.sample, and train with TraceEnum_ELBO; or '
        "let AmortizedJoint draw it."
    )


def check_width(
    encoder: nn.Module, batch: tuple[Tensor, ...], width: int, names: list[str], what: str
) -> None:
    """Refuse an encoder with another number of outputs than the sites need."""
    with dry_run(encoder), torch.no_grad():
        out = encoder(*batch)
    expected = (len(batch[0]), width)
    if tuple(out.shape) != expected:
        raise ValueError(
            f"The encoder returns {tuple(out.shape)}, but {names} need {expected}: {what}. "
            f"Let its last layer have {width} outputs."
        )
