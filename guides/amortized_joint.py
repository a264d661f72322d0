"""Amortized chain of conditionals over local latents of any kinds.

    q(z_n | x_n) = Π_s q_s(z_ns; λ_ns),   λ_ns = head_s(h(x_n), z_n1, …, z_n,s-1)

h is the encoder. Every site has a small network that reads h and all sites before it: unconstrained
values of continuous sites, one-hot categories, unchanged bits. A discrete site gets a probability
for every value; for a continuous one, q_s is a factor of your choice:

    normal          N(μ, diag σ²), the default
    multivariate    full covariance
    low_rank        D Dᵀ + diag σ², two columns
    spline, affine  a flow of two steps

Draws of discrete sites are not reparameterized: train with an objective for such guides
(LeaveOneOut, VIMCO, …), or let TraceEnum_ELBO enumerate them with `enumerate="parallel"`.

Serves models whose latents are local, in the plate over rows and no other, and continuous, or
Bernoulli, Categorical or OneHotCategorical. Sites that the model marks for enumeration are left to
it.

Reference:
    Webb et al. (2018). Faithful inversion of generative models for effective amortized inference.
    https://arxiv.org/abs/1712.00287: why the sites of q must not be taken to be independent.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_lvm.authoring import Signature, Site, dry_run
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.amortized_categorical import infer_enumerate
from ppl_lvm.guides.amortized_flow import FlowFamily, conditioners, flow_size
from ppl_lvm.guides.parts.encoder_guide import nothing_to_serve, require_local, require_row
from ppl_lvm.guides.parts.site_guide import (
    Latents,
    SiteGuide,
    module_names,
    serving,
    signature_of,
)
from ppl_lvm.guides.parts.support_transform import enter_plates, enumerated
from ppl_lvm.guides.parts.variational_families import (
    DiagonalFamily,
    DiscreteFactor,
    Factor,
    FullRankFamily,
    LowRankFamily,
    TransformedFactor,
    require_discrete_family,
    vector_factors,
)
from ppl_lvm.nn import MLP, RowEncoder
from ppl_lvm.nn.bijections import Affine, Spline

FAMILIES = ("normal", "multivariate", "low_rank", "spline", "affine")
GUIDE = "AmortizedJoint"
CONTEXT, FLOW_HIDDEN, FLOW_STEPS, BINS, BOUND = 16, (32,), 2, 8, 4.0


@serving(
    Latents.LOCAL_CONTINUOUS,
    Latents.LOCAL_DISCRETE,
    description="a chain of conditionals from one encoder",
)
class AmortizedJoint(SiteGuide):
    """q(z_1 | x) q(z_2 | x, z_1) … for the local latents of a model.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows.
        factors: continuous site -> one of "normal", "multivariate", "low_rank", "spline",
            "affine"; other sites are normal.
        enumerate: "parallel" or "sequential" marks discrete sites for TraceEnum_ELBO.
        encoder: h, a network called as `encoder(*batch)` that returns (B, features), with any
            number of features. If None, a `RowEncoder` over all columns with `features` outputs.
        features: outputs of the default encoder.
        hidden: widths of the hidden layers of the default encoder.
        head_hidden: widths of the hidden layers of the sites' networks.

    Raises:
        ValueError: for a model it does not serve, naming the site and the remedy.
    """

    accepts_signature = True

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        factors: Mapping[str, str] | None = None,
        enumerate: str | None = None,
        encoder: nn.Module | None = None,
        features: Count = 32,
        hidden: tuple[Count, ...] = (128,),
        head_hidden: tuple[Count, ...] = (32,),
    ) -> None:
        super().__init__()
        infer = infer_enumerate(GUIDE, enumerate)
        self._signature = signature_of(model, *batch)
        self.sites = supported_sites(self._signature)
        families = _families(self.sites, factors or {})
        networks: dict[str, nn.Module] = {}
        self._factors = [
            _factor(site, self._signature, families.get(site.name), infer, networks)
            for site in self.sites
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
        names = module_names(networks, dir(nn.ModuleDict()))
        self.networks = nn.ModuleDict({names[n]: steps for n, steps in networks.items()}).to(h)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        _ = self.networks  # access to a module registers its parameters with Pyro
        inputs = self.encoder(*batch)  # (..., B, inputs of the next head)
        for factor, head in zip(self._factors, self.heads, strict=True):
            with enter_plates(factor.site, plates):
                params = head(inputs)
                value = pyro.sample(factor.site.name, factor(params), infer=dict(factor.infer))
            features = factor.features(value).to(inputs)
            rows = torch.broadcast_shapes(inputs.shape[:-1], features.shape[:-1])
            inputs = torch.cat([inputs.expand(*rows, -1), features.expand(*rows, -1)], dim=-1)


def supported_sites(model_signature: Signature) -> list[Site]:
    """The local latents that are not enumerated in the model.

    Raises:
        ValueError: naming the first that AmortizedJoint does not serve, or if there are none.
    """
    sites = [site for site in model_signature.latents if not enumerated(site)]
    for site in sites:
        require_local(site, GUIDE)
        require_row(site, model_signature, GUIDE)
        if _is_discrete(site):
            require_discrete_family(site, GUIDE)
    if not sites:
        raise ValueError(nothing_to_serve(GUIDE, "latent", model_signature))
    return sites


def _is_discrete(site: Site) -> bool:
    return site.discrete or site.distribution == "OneHotCategorical"


def _families(sites: list[Site], factors: Mapping[str, str]) -> dict[str, str]:
    """Continuous site -> its family.

    Raises:
        ValueError: for an unknown site or family.
    """
    continuous = [site.name for site in sites if not _is_discrete(site)]
    for name, family in factors.items():
        if name not in continuous:
            raise ValueError(
                f"{GUIDE}: factors names {name!r}, but the continuous sites are {continuous}. "
                "Leave it out."
            )
        if family not in FAMILIES:
            raise ValueError(
                f"{GUIDE}: unknown family {family!r} of {name!r}. Use one of {', '.join(FAMILIES)}."
            )
    return {name: factors.get(name, "normal") for name in continuous}


def _factor(
    site: Site,
    model_signature: Signature,
    family: str | None,
    infer: Mapping[str, Any],
    networks: dict[str, nn.Module],
) -> Factor:
    """The site's factor; the networks of a flow are added to `networks`."""
    if family is None:
        return DiscreteFactor(site, model_signature, infer)
    if family in ("spline", "affine"):
        scalar = Affine() if family == "affine" else Spline(BINS, BOUND)
        steps = conditioners(scalar, flow_size(site, family), CONTEXT, FLOW_HIDDEN, FLOW_STEPS)
        networks[site.name] = steps
        return TransformedFactor(site, model_signature, FlowFamily(scalar, list(steps), CONTEXT))
    if family == "normal":
        return TransformedFactor(site, model_signature, DiagonalFamily())
    normal = FullRankFamily() if family == "multivariate" else LowRankFamily(2)
    return vector_factors([site], model_signature, normal, GUIDE)[0]
