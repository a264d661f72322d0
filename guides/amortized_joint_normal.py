"""Amortized joint normal: one covariance over all local latents.

    u_n = (u_n1, u_n2, …) ~ N(μ(x_n), Σ(x_n)),   Σ = L Lᵀ = S Sᵀ + ε I,   z_ns = T_s(u_ns)

where u_ns are the unconstrained values of site s, T_s is the bijection onto its support, and
(μ, S - I) = encoder(x_n). Each site is drawn from its conditional given the sites before it,

    u_s | u_1 … u_{s-1} ~ N(μ_s + Σ_{r<s} L_sr ε_r, L_ss L_ssᵀ),    ε_r = L_rr⁻¹ (u_r - E[u_r | …]),

with L_sr the blocks of the Cholesky factor. So every site has its conditional density, and their
product is the joint density, exactly.

Serves models whose latents are local and continuous, in the plate over rows and no other. A step
takes k³ operations per row, for k unconstrained values in all sites together.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal, TransformedDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from ppl_lvm.authoring import Signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import check_width, require_row, supported_sites
from ppl_lvm.guides.parts.site_guide import Latents, SiteGuide, serving, signature_of
from ppl_lvm.guides.parts.support_transform import TransformedNormal, enter_plates
from ppl_lvm.guides.parts.variational_families import cholesky
from ppl_lvm.nn import RowEncoder

GUIDE = "AmortizedJointNormal"


@serving(Latents.LOCAL_CONTINUOUS, description="one joint normal of all sites from one encoder")
class AmortizedJointNormal(SiteGuide):
    """q(z_1, z_2, … | x) with one covariance for all sites of a row.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns k values of μ, of all sites in
            the order of the model's code, and k² of S - I, row by row: (B, k + k²). If None, a
            `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and the remedy.
    """

    accepts_signature = True

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        encoder: nn.Module | None = None,
        hidden: tuple[Count, ...] = (128,),
    ) -> None:
        super().__init__()
        self._signature = signature_of(model, *batch)
        self.sites = supported_sites(self._signature, GUIDE)
        for site in self.sites:
            require_row(site, self._signature, GUIDE)
        self._transforms = [TransformedNormal(site) for site in self.sites]
        self._sizes = [math.prod(transform.shape) for transform in self._transforms]
        self.size = sum(self._sizes)  # k
        width = self.size + self.size**2
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=width, hidden=tuple(hidden))
        self.encoder = encoder
        names = [site.name for site in self.sites]
        check_width(encoder, batch, width, names, f"k of μ and k² of S, k = {self.size} in all")

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        params = self.encoder(*batch)
        mu, L = params[:, : self.size], cholesky(params, self.size)
        eps = mu[:, :0]  # of the sites before, (..., B, their sizes)
        for site, transform, size in zip(self.sites, self._transforms, self._sizes, strict=True):
            begin, end = eps.shape[-1], eps.shape[-1] + size
            loc = mu[:, begin:end] + (L[:, begin:end, :begin] @ eps[..., None]).squeeze(-1)
            block = L[:, begin:end, begin:end]
            with enter_plates(site, plates):
                q = transform.apply(_normal(loc, block, transform.shape))
                value = pyro.sample(site.name, q)
            u = transform.unconstrain(value)
            u = u.reshape(*u.shape[: u.dim() - len(transform.shape)], size)
            new = torch.linalg.solve_triangular(block, (u - loc)[..., None], upper=False)
            new = new.squeeze(-1)
            eps = torch.cat([eps.expand(*new.shape[:-1], begin), new], dim=-1)


def _normal(loc: Tensor, L: Tensor, shape: torch.Size) -> Any:
    """N(loc, L Lᵀ) of values (..., size), as an event of this shape."""
    if not shape:
        return Normal(loc.squeeze(-1), L.squeeze(-1).squeeze(-1))
    normal = MultivariateNormal(loc, scale_tril=L)
    if len(shape) == 1:
        return normal
    flat = torch.Size((math.prod(shape),))
    return TransformedDistribution(normal, [ReshapeTransform(flat, shape, cache_size=1)])
