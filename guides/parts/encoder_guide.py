"""Base of the amortized guides: one encoder for all sites.

    λ_n = encoder(x_n),    q(z_n | x_n) = Π_s q_s(z_ns; λ_ns)

with λ_n = (λ_n1, λ_n2, …) in the order of the model's code. The `Factor` of a site makes its
distribution of λ_ns (`variational_families.py`).
"""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_lvm.authoring import DATA_PLATE, Signature, Site, dry_run
from ppl_lvm.guides.parts.site_guide import SiteGuide
from ppl_lvm.guides.parts.support_transform import (
    enter_plates,
    enumerated,
    require_plain_plates,
    row_plate,
    subsamples,
)
from ppl_lvm.guides.parts.variational_families import Factor
from ppl_lvm.nn import RowEncoder


class EncoderGuide(SiteGuide):
    """Base of the guides with one encoder whose sites are independent given x.

    Args:
        model_signature: the model's signature.
        factors: one for each site.
        batch: some rows of the data.
        encoder: called as `encoder(*batch)`, returns (B, Σ widths); None: a `RowEncoder`.
        hidden: widths of its hidden layers.
        outputs: the outputs for a site in words, for the error.
    """

    def __init__(
        self,
        model_signature: Signature,
        factors: Sequence[Factor],
        batch: tuple[Tensor, ...],
        *,
        encoder: nn.Module | None,
        hidden: tuple[int, ...],
        outputs: str,
    ) -> None:
        super().__init__()
        self._signature, self._factors = model_signature, factors
        self.sites = [factor.site for factor in factors]
        width = sum(factor.width for factor in factors)
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=width, hidden=tuple(hidden))
        self.encoder = encoder
        check_width(encoder, batch, width, [site.name for site in self.sites], outputs)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        sample_factors(self.encoder(*batch), self._factors, plates)


def sample_factors(params: Tensor, factors: Sequence[Factor], plates: dict[str, Any]) -> None:
    """Sample every factor's site from its part of `params` (B, Σ widths), inside `plates`."""
    parts = params.split([factor.width for factor in factors], dim=-1)
    for factor, part in zip(factors, parts, strict=True):
        with enter_plates(factor.site, plates):
            pyro.sample(factor.site.name, factor(part), infer=dict(factor.infer))


def supported_sites(
    model_signature: Signature, guide: str, *, subsampled: bool = False
) -> list[Site]:
    """The local continuous sites; `guide` is its name in errors.

    Args:
        model_signature: the model's signature.
        guide: name of the guide.
        subsampled: whether the plate over rows may have a `subsample_size`.

    Raises:
        ValueError: naming the first latent of another kind, or if there is no latent to serve.
    """
    sites = []
    for site in model_signature.latents:
        if enumerated(site):
            continue
        if site.discrete:
            raise ValueError(f"{guide}: it serves continuous sites, but {_discrete(site)}")
        require_local(site, guide)
        require_plain_plates(site, model_signature)
        if not subsampled and subsamples(model_signature):
            name = row_plate(model_signature).name
            raise ValueError(
                f"{guide}: it encodes the rows that it is called with, but the plate {name!r} "
                f"draws a subsample of them. Write pyro.plate({name!r}, len(x)) and call the model "
                "with the rows of a batch, as fit does; or use LocalNormal."
            )
        sites.append(site)
    if not sites:
        raise ValueError(nothing_to_serve(guide, "continuous latent", model_signature))
    return sites


def nothing_to_serve(guide: str, kind: str, model_signature: Signature) -> str:
    """Message for a model without a latent of the kind that a guide serves."""
    names = [site.name for site in model_signature.latents]
    return (
        f"{guide}: there is no {kind} to serve; the model's latents are {names}. "
        "Use ppl_lvm.guides:auto_guide."
    )


def require_row(site: Site, model_signature: Signature, guide: str) -> None:
    """Refuse a site whose plates are not that over rows alone, with the rows at dimension -1.

    Raises:
        ValueError: naming it, and the guide that serves it.
    """
    plates = [model_signature.plate(name) for name in site.plates]
    if [(plate.over_rows, plate.dim) for plate in plates] != [(True, -1)]:
        listed = ", ".join(map(repr, site.plates))
        raise ValueError(
            f"{guide}: it serves sites whose only plate is that over rows, with dim=-1, but "
            f"{site.name!r} stands in {listed}. Use AmortizedNormal, or make the other plate a "
            "dimension of the event with .to_event(1)."
        )


def require_local(site: Site, guide: str) -> None:
    """Refuse a global site.

    Raises:
        ValueError: naming it, and the guide that serves it.
    """
    if not site.local:
        raise ValueError(
            f"{guide}: it serves sites inside the plate over rows, but {site.name!r} "
            "is global. Use ppl_lvm.guides:auto_guide, which adds a guide for it, "
            f"or put it inside pyro.plate({DATA_PLATE!r}, len(x)) if it is one value per row."
        )


def _discrete(site: Site) -> str:
    if site.values is None:
        return (
            f"{site.name!r} ~ {site.distribution} is discrete, with too many values to enumerate. "
            "Use AmortizedJoint or AmortizedCategorical if they serve its family, or write a guide "
            "that samples it, and train with a score-function objective."
        )
    return (
        f"{site.name!r} ~ {site.distribution} is discrete. Enumerate it: add "
        'infer={"enumerate": "parallel"} to its pyro.sample, and train with TraceEnum_ELBO; or '
        "use AmortizedJoint, which samples it."
    )


def check_width(
    encoder: nn.Module, batch: tuple[Tensor, ...], width: int, names: list[str], outputs: str
) -> None:
    """Refuse an encoder with another number of outputs than the sites need."""
    with dry_run(encoder), torch.no_grad():
        out = encoder(*batch)
    expected = (len(batch[0]), width)
    if tuple(out.shape) != expected:
        raise ValueError(
            f"Encoder: it returns {tuple(out.shape)}, but {names} need {expected}: {outputs}. "
            f"Give its last layer {width} outputs."
        )
