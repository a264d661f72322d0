"""Latents of a datum that depend on each other, of any kinds: a chain in the model's order.

    q(z_n | x_n) = Π_s q_s(z_ns; λ_ns),   λ_ns = head_s(h(x_n), z_n1, …, z_n,s-1)

h is the encoder, and every site has a small network of its own that reads h and all sites before
it: unconstrained where they are continuous, one-hot where they are categories, as they are where
they are bits. A discrete site gets a probability for every value; of a continuous one q_s is a
factor of your choice:

    normal          N(μ, diag σ²), the default
    multivariate    full covariance
    low_rank        D Dᵀ + diag σ², two columns
    spline, affine  a flow of two steps

Draws of discrete sites are not reparameterised: train with an objective for such guides
(LeaveOneOut, VIMCO, …), or let TraceEnum_ELBO sum them out with `enumerate="parallel"`.

Serves models whose latents are local, in the plate "data" and no other, and continuous, or
Bernoulli, Categorical or OneHotCategorical. What the model marks for enumeration is left to it.

Reference:
    Webb et al. (2018). Faithful inversion of generative models for effective amortized inference.
    https://arxiv.org/abs/1712.00287: why the sites of q must not be taken to be independent.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.guides.amortized_flow import Flow, conditioners, size_for
from ppl_lvm.guides.parts.encoder_guide import require_local, require_row
from ppl_lvm.guides.parts.support_transform import enter_plates, enumerated, open_plates
from ppl_lvm.guides.parts.variational_families import (
    DiagonalFamily,
    Factor,
    FullRankFamily,
    LowRankFamily,
    TransformedFactor,
    Values,
    require_values,
    vectors,
)
from ppl_lvm.nn import MLP, RowEncoder
from ppl_lvm.nn.bijections import Affine, Spline
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.signatures import Signature, Site, signature

FAMILIES = ("normal", "multivariate", "low_rank", "spline", "affine")
GUIDE = "AmortizedJoint"
CONTEXT, FLOW_HIDDEN, FLOW_STEPS, BINS, BOUND = 16, (32,), 2, 8, 4.0


class AmortizedJoint(PyroModule):
    """q(z_1 | x) q(z_2 | x, z_1) … for the local latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some typical rows.
        factors: continuous site -> one of "normal", "multivariate", "low_rank", "spline",
            "affine"; sites not named are normal.
        enumerate: "parallel" or "sequential" marks discrete sites for TraceEnum_ELBO.
        encoder: h, a network called as `encoder(*batch)` that returns (B, features), of any
            number. If None, a `RowEncoder` over all columns with `features` outputs.
        features: of the default encoder.
        hidden: widths of the hidden layers of the default encoder.
        head_hidden: widths of the hidden layers of the sites' networks.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        factors: Mapping[str, str] | None = None,
        enumerate: str | None = None,
        encoder: nn.Module | None = None,
        features: int = 32,
        hidden: tuple[int, ...] = (128,),
        head_hidden: tuple[int, ...] = (32,),
    ) -> None:
        super().__init__()
        if enumerate not in (None, "parallel", "sequential"):
            raise ValueError(f"enumerate is 'parallel', 'sequential' or None, got {enumerate!r}.")
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        self._signature = declared
        self.sites = supported_sites(declared)
        infer = {} if enumerate is None else {"enumerate": enumerate}
        chosen = _chosen(self.sites, factors or {})
        networks: dict[str, nn.Module] = {}
        self._factors = [
            _factor(site, declared, chosen.get(site.name), infer, networks) for site in self.sites
        ]
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=features, hidden=tuple(hidden))
        self.encoder = encoder
        with dry_run(encoder), torch.no_grad():
            h = encoder(*batch)
        inputs, heads = h.shape[-1], []
        for factor in self._factors:
            heads.append(MLP(inputs, factor.width, tuple(head_hidden)).to(h))
            inputs += factor.size
        self.heads = nn.ModuleList(heads)
        self.networks = nn.ModuleDict(networks).to(h)

    def forward(self, *batch: Tensor) -> None:
        self.draw(open_plates(self.sites, self._signature, len(batch[0])), *batch)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        _ = self.networks  # to look at a module announces its parameters to Pyro
        seen = self.encoder(*batch)  # (..., B, inputs of the next head)
        for factor, head in zip(self._factors, self.heads, strict=True):
            with enter_plates(factor.site, plates):
                value = pyro.sample(factor.site.name, factor(head(seen)), infer=dict(factor.infer))
            told = factor.features(value).to(seen)
            rows = torch.broadcast_shapes(seen.shape[:-1], told.shape[:-1])
            seen = torch.cat([seen.expand(*rows, -1), told.expand(*rows, -1)], dim=-1)


def supported_sites(declared: Signature) -> list[Site]:
    """The local latents that are not summed out of the model.

    Raises:
        ValueError: naming the first that AmortizedJoint does not serve, or if there is none.
    """
    sites = [site for site in declared.latents if not enumerated(site)]
    for site in sites:
        require_local(site, GUIDE)
        require_row(site, declared, GUIDE)
        if _is_discrete(site):
            require_values(site, GUIDE)
    if not sites:
        raise ValueError(
            f"{GUIDE} found no latent to serve: the model's are "
            f"{[site.name for site in declared.latents]}. Use ppl_lvm.guides:auto_guide."
        )
    return sites


def _is_discrete(site: Site) -> bool:
    return site.discrete or site.distribution == "OneHotCategorical"


def _chosen(sites: list[Site], factors: Mapping[str, str]) -> dict[str, str]:
    """Continuous site -> its family.

    Raises:
        ValueError: for a name that is no such site, or no family.
    """
    continuous = [site.name for site in sites if not _is_discrete(site)]
    for name, family in factors.items():
        if name not in continuous:
            raise ValueError(
                f"factors names {name!r}, but the continuous sites are {continuous}. Leave it out."
            )
        if family not in FAMILIES:
            raise ValueError(f"{name!r} is to be {family!r}; choose from {', '.join(FAMILIES)}.")
    return {name: factors.get(name, "normal") for name in continuous}


def _factor(
    site: Site,
    declared: Signature,
    family: str | None,
    infer: Mapping[str, Any],
    networks: dict[str, nn.Module],
) -> Factor:
    """The site's factor; what a flow learns beside its numbers goes to `networks`."""
    if family is None:
        return Values(site, declared, infer)
    if family in ("spline", "affine"):
        scalar = Affine() if family == "affine" else Spline(BINS, BOUND)
        found = conditioners(scalar, size_for(site, family), CONTEXT, FLOW_HIDDEN, FLOW_STEPS)
        networks[site.name] = found
        return TransformedFactor(site, declared, Flow(scalar, list(found), CONTEXT))
    if family == "normal":
        return TransformedFactor(site, declared, DiagonalFamily())
    return vectors(
        [site], declared, FullRankFamily() if family == "multivariate" else LowRankFamily(2), GUIDE
    )[0]
