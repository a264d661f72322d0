"""One encoder for all data: q(z_n | x_n) is a Dirichlet whose concentrations a network computes.

    q(z_n | x_n) = Dirichlet(c(x_n)),    c = softplus(encoder(x_n)),

for every local latent on a simplex; what all data share has a `GlobalNormal`. Unlike a normal
pushed onto the simplex, a Dirichlet can put its mass into a corner or on an edge, as a sparse
prior does: that is what documents of few topics have. Its draws are reparameterised by implicit
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
from pyro.distributions import Dirichlet, constraints
from torch import Tensor, nn

from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, sample_factors, supported_sites
from ppl_lvm.guides.parts.support_transform import open_plates
from ppl_lvm.guides.parts.variational_families import Factor, arrange, beside_data
from ppl_lvm.programs.signatures import Signature, Site, signature

# A concentration below this has draws that are zeros to rounding.
LEAST = 1e-2


class AmortizedDirichlet(EncoderGuide):
    """q(z | x) = Dirichlet(c(x)) for local latents on a simplex, `GlobalNormal` for the others.

    Args:
        model: the model.
        batch: what it is called with: some rows, the more typical the better.
        encoder: a network called as `encoder(*batch)` that returns a number for each entry of
            the simplices: (B, Σ sizes). If None, a `RowEncoder`.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a local latent that lies on no simplex, naming it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *batch: Tensor,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (64,),
    ) -> None:
        declared = signature(model, *batch)
        shared = [site for site in declared.latents if not site.local]
        kept = tuple(site for site in declared.sites if site not in shared)
        local = Signature(kept, declared.plates, declared.parameters)
        factors = [
            Concentrations(site, local) for site in supported_sites(local, "AmortizedDirichlet")
        ]
        what = "a concentration for every entry"
        super().__init__(declared, factors, batch, encoder=encoder, hidden=hidden, what=what)
        self.shared = GlobalNormal(model, *batch) if shared else None

    def forward(self, *batch: Tensor) -> None:
        others = [] if self.shared is None else self.shared.sites
        plates = open_plates([*self.sites, *others], self._signature, len(batch[0]))
        if self.shared is not None:
            self.shared.draw(plates, *batch)
        sample_factors(self.encoder(*batch), self._factors, plates)


class Concentrations(Factor):
    """Dirichlet(softplus(λ)) on the simplex of a site."""

    def __init__(self, site: Site, declared: Signature) -> None:
        if not isinstance(site.support, type(constraints.simplex)):
            raise ValueError(
                f"AmortizedDirichlet serves sites on a simplex, but {site.name!r} ~ "
                f"{site.distribution} is none. Use ppl_lvm.guides:auto_guide."
            )
        self.site, self._declared = site, declared
        self.infer = {}
        self.width = math.prod(site.event_shape) * math.prod(beside_data(site, declared))
        self.size = self.width

    def __call__(self, numbers: Tensor) -> Any:
        """The distribution in the site's batch shape, of `numbers` (B, width)."""
        each = arrange(numbers, self.site, self._declared, tuple(self.site.event_shape))
        return Dirichlet(torch.nn.functional.softplus(each) + LEAST)

    def features(self, value: Tensor) -> Tensor:
        """The value itself, side by side: (..., B, size)."""
        rows = value.shape[: value.dim() - len(self.site.event_shape)]
        return value.reshape(*rows, self.size)
