"""One encoder for all data: q(z_n | x_n) is a normal whose parameters a network computes.

    q(z_n | x_n) = N(μ(x_n), diag σ²(x_n)),   (μ, log σ) = encoder(x_n)

for every local continuous latent z, pushed onto the site's support where that is not the real
line. Several sites are independent given x. Discrete sites that the model marks for enumeration
are left to it.

Serves models whose latents are all local (inside the plate "data"), continuous or enumerated.

Reference:
    Kingma, Welling (2014). Auto-encoding variational Bayes. https://arxiv.org/abs/1312.6114
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.dry_run import dry_run
from ppl_lvm.guides.pushed import (
    PushedNormal,
    enumerated,
    inside,
    open_plates,
    require_plain_plates,
)
from ppl_lvm.nn import RowEncoder
from ppl_lvm.signature import Signature, Site, signature
from ppl_lvm.subsample import DATA_PLATE


class AmortizedNormal(PyroModule):
    """q(z | x) = N(μ(x), diag σ²(x)) for the local continuous latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some rows, the more typical the better, since the
            default encoder takes its inputs' scale from them.
        encoder: a network called as `encoder(*batch)` that returns (B, 2 k) numbers: μ, then
            log σ, of the k unconstrained numbers that a datum's latents hold (in the order of
            the model's code). If None, a `RowEncoder` over all columns, gaps (NaN) and all.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (128,),
    ) -> None:
        super().__init__()
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        self._signature = declared
        self.sites = served(declared)
        self._pushed = [PushedNormal(site) for site in self.sites]
        self._sizes = [
            math.prod(pushed.shape) * math.prod(beside_data(site, declared))
            for site, pushed in zip(self.sites, self._pushed, strict=True)
        ]
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=2 * sum(self._sizes), hidden=tuple(hidden))
        self.encoder = encoder
        names, k = [site.name for site in self.sites], sum(self._sizes)
        check_width(encoder, batch, 2 * k, names, f"μ and log σ of {k} numbers a datum")

    def forward(self, *batch: Tensor) -> None:
        self.draw(open_plates(self.sites, self._signature, len(batch[0])), *batch)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        locs, log_scales = self.encoder(*batch).chunk(2, dim=-1)  # (B, k) each
        split = zip(
            locs.split(self._sizes, dim=-1), log_scales.split(self._sizes, dim=-1), strict=True
        )
        for site, pushed, (loc, log_scale) in zip(self.sites, self._pushed, split, strict=True):
            loc = arrange(loc, site, self._signature, pushed.shape)
            scale = arrange(log_scale, site, self._signature, pushed.shape).exp()
            with inside(site, plates):
                pyro.sample(site.name, pushed(loc, scale))


def served(declared: Signature, guide: str = "AmortizedNormal") -> list[Site]:
    """The sites that an amortised normal serves; `guide` is what errors call it.

    Raises:
        ValueError: naming the first latent that it does not, or if it has none to serve.
    """
    sites = []
    for site in declared.latents:
        if enumerated(site):
            continue
        if site.discrete:
            raise ValueError(f"{guide} serves continuous sites, but {_discrete(site)}")
        if not site.local:
            raise ValueError(
                f"{guide} serves sites inside the plate {DATA_PLATE!r}, but {site.name!r} "
                "is shared by all data. Use ppl_lvm.guides:auto_guide, which adds a guide for it, "
                f"or put it inside pyro.plate({DATA_PLATE!r}, len(x)) if each datum has its own."
            )
        require_plain_plates(site, declared)
        sites.append(site)
    if not sites:
        raise ValueError(
            f"{guide} found no continuous latent to serve: the model's latents are "
            f"{[site.name for site in declared.latents]}. Use ppl_lvm.guides:auto_guide."
        )
    return sites


def _discrete(site: Site) -> str:
    if site.values is None:
        return (
            f"{site.name!r} ~ {site.distribution} is discrete, with too many values to enumerate. "
            "Write a guide that samples it, and train with a score-function objective."
        )
    return (
        f"{site.name!r} ~ {site.distribution} is discrete. Let it be summed out: add "
        'infer={"enumerate": "parallel"} to its pyro.sample, and train with TraceEnum_ELBO.'
    )


def arrange(numbers: Tensor, site: Site, declared: Signature, event: tuple[int, ...]) -> Tensor:
    """Numbers (B, k) of an encoder in the site's batch shape, with `event` to the right."""
    beside = beside_data(site, declared)
    arranged = numbers.reshape(len(numbers), *beside, *event)
    return arranged.movedim(0, len(beside) + 1 + (declared.plate(DATA_PLATE).dim or -1))


def beside_data(site: Site, declared: Signature) -> list[int]:
    """The batch shape without the data dimension."""
    data_dim = declared.plate(DATA_PLATE).dim
    shape = list(site.batch_shape)
    del shape[len(shape) + (data_dim or -1)]
    return shape


def check_width(
    encoder: nn.Module, batch: tuple[Tensor, ...], width: int, names: list[str], what: str
) -> None:
    with dry_run(encoder), torch.no_grad():
        out = encoder(*batch)
    expected = (len(batch[0]), width)
    if tuple(out.shape) != expected:
        raise ValueError(
            f"The encoder returns {tuple(out.shape)}, but {names} need {expected}: {what}. "
            f"Let its last layer have {width} outputs."
        )
