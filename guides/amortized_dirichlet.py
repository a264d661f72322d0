"""Amortized Dirichlet: concentrations of local simplex latents from one encoder.

    q(z_n | x_n) = Dirichlet(c(x_n)),    c = softplus(encoder(x_n)),

for every local latent on a simplex, and a `GlobalNormal` for the global latents. Unlike a normal
transformed to the simplex, a Dirichlet can put its mass into a corner or on an edge, as a sparse
prior does: the posterior of a document with few topics. Its draws are reparameterized by implicit
differentiation.

Serves models whose local latents all lie on a simplex: topic models.

Reference:
    Figurnov, Mohamed, Mnih (2018). Implicit reparameterization gradients.
    https://arxiv.org/abs/1805.08498
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ppl_lvm.authoring import Signature, Site
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.global_part import without_sites
from ppl_lvm.guides.parts.interior_dirichlet import LEAST, interior_dirichlet
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.variational_families import Factor, arrange, other_batch_dims


@serving(Latents.LOCAL_SIMPLEX, description="Dirichlets from one encoder")
class AmortizedDirichlet(EncoderGuide):
    """q(z | x) = Dirichlet(c(x)) for local latents on a simplex, `GlobalNormal` for the others.

    Args:
        model: the model, or its signature if no latent is global.
        batch: its arguments: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns one output for each entry of
            the simplices: (B, Σ sizes). If None, a `RowEncoder`.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a local latent that lies on no simplex, naming it.
    """

    accepts_signature = True

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        encoder: nn.Module | None = None,
        hidden: tuple[Count, ...] = (64,),
    ) -> None:
        complete = signature_of(model, *batch)
        global_names = {site.name for site in complete.global_latents}
        local = without_sites(complete, global_names)
        factors = [
            DirichletFactor(site, local) for site in supported_sites(local, "AmortizedDirichlet")
        ]
        outputs = "a concentration for every entry"
        super().__init__(local, factors, batch, encoder=encoder, hidden=hidden, outputs=outputs)
        self.shared = None
        if global_names and not isinstance(model, Signature):
            self.shared = GlobalNormal(model, *batch)
            self.sites = [*self.shared.sites, *self.sites]

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        if self.shared is not None:
            self.shared.draw(plates, *batch)
        super().draw(plates, *batch)


class DirichletFactor(Factor):
    """Dirichlet(softplus(λ)) on the simplex of a site."""

    def __init__(self, site: Site, model_signature: Signature) -> None:
        if not isinstance(site.support, type(constraints.simplex)):
            raise ValueError(
                f"AmortizedDirichlet: it serves sites on a simplex, but {site.name!r} ~ "
                f"{site.distribution} has another support. Use ppl_lvm.guides:auto_guide."
            )
        self.site, self._signature = site, model_signature
        self.infer = {}
        events = math.prod(other_batch_dims(site, model_signature))
        self.width = self.size = math.prod(site.event_shape) * events

    def __call__(self, params: Tensor) -> Any:
        """Distribution in the site's batch shape, of `params` (B, width)."""
        arranged = arrange(params, self.site, self._signature, tuple(self.site.event_shape))
        return interior_dirichlet(torch.nn.functional.softplus(arranged) + LEAST)

    def features(self, value: Tensor) -> Tensor:
        """The value, flattened: (..., B, size)."""
        rows = value.shape[: value.dim() - len(self.site.event_shape)]
        return value.reshape(*rows, self.size)
