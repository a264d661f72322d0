"""Amortized normalizing flow: any shape, with exact density.

    ε ~ N(0, I),   u = μ(x_n) + σ(x_n) f_T(… f_1(ε; c(x_n)) …; c(x_n)),   z_n = T(u)

    log q(z_n | x_n) = log N(ε; 0, I) - Σ_t log |det ∂f_t| - Σ log σ - log |det ∂T|

for every local continuous latent z, with (μ, log σ, c) = encoder(x_n), T the bijection onto the
site's support, and f_t autoregressive steps (`parts/autoregressive_flow.py`) that read the context
c and reverse the order of the coordinates at every step. They start near the identity, so that
training starts from AmortizedNormal. Several sites are independent given x.

Serves models that AmortizedNormal serves. A draw and its score cost one evaluation of each step's
network; a score of other values (detached draws of DReG or StickingTheLanding) costs k of them.

References:
    Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016). Improving variational inference
    with inverse autoregressive flow. https://arxiv.org/abs/1606.04934
    Durkan, Bekasov, Murray, Papamakarios (2019). Neural spline flows.
    https://arxiv.org/abs/1906.04032
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Normal, TransformedDistribution
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ReshapeTransform

from ppl_lvm.authoring import Signature, Site
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.guides.parts.autoregressive_flow import Autoregressive, Conditioner
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.support_transform import TransformedNormal
from ppl_lvm.guides.parts.variational_families import NormalFamily, TransformedFactor
from ppl_lvm.nn.bijections import Affine, Scalar, Spline

FLOWS = ("spline", "affine")


@serving(Latents.LOCAL_CONTINUOUS, description="normalizing flows from one encoder")
class AmortizedFlow(EncoderGuide):
    """q(z | x) by a flow conditioned on x, for the local continuous latents of a model.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows.
        flow: "spline" (rational quadratic) or "affine" (inverse autoregressive flow; for vectors
            only, since an affine flow of a scalar is a normal again).
        steps: number of f_t, each with its own network.
        context: size of c.
        bins, bound: of the splines: bins on [-bound, bound], in units of σ around μ; the
            identity outside.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k values of μ, k of log σ and c: (B, Σ (2 k + context)). If None,
            a `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.
        flow_hidden: widths of the hidden layers of the steps' networks.

    Raises:
        ValueError: for a model it does not serve, naming the site and the remedy.
    """

    accepts_signature = True

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        flow: str = "spline",
        steps: Count = 2,
        context: Count = 16,
        bins: Count = 8,
        bound: Positive = 4.0,
        encoder: nn.Module | None = None,
        hidden: tuple[Count, ...] = (128,),
        flow_hidden: tuple[Count, ...] = (32,),
    ) -> None:
        if flow not in FLOWS:
            raise ValueError(f"AmortizedFlow: flow={flow!r}. Use {' or '.join(map(repr, FLOWS))}.")
        if min(steps, context, bins) < 1 or not bound > 0 or not flow_hidden:
            raise ValueError(
                f"AmortizedFlow: steps={steps}, context={context}, bins={bins}, bound={bound}, "
                f"flow_hidden={flow_hidden}. Use steps, context and bins >= 1, bound > 0 and a "
                "hidden layer in flow_hidden."
            )
        model_signature = signature_of(model, *batch)
        scalar = Spline(bins, bound) if flow == "spline" else Affine()
        factors, networks = [], []
        for site in supported_sites(model_signature, "AmortizedFlow"):
            k = flow_size(site, flow)
            networks.append(conditioners(scalar, k, context, tuple(flow_hidden), steps))
            family = FlowFamily(scalar, list(networks[-1]), context)
            factors.append(TransformedFactor(site, model_signature, family))
        outputs = f"k of μ, k of log σ and {context} of the context for each site"
        super().__init__(
            model_signature, factors, batch, encoder=encoder, hidden=hidden, outputs=outputs
        )
        like = next((x for x in batch if x.is_floating_point()), torch.empty(0))
        self.networks = nn.ModuleList(networks).to(like)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        _ = self.networks  # access to a module registers its parameters with Pyro
        super().draw(plates, *batch)


class FlowFamily(NormalFamily):
    """μ + σ f_T(… f_1(ε; c) …; c), of the parameters μ, log σ, c.

    Args:
        scalar: the bijection of one coordinate in a step.
        networks: a `Conditioner` for each step.
        context: size of c.
    """

    def __init__(self, scalar: Scalar, networks: Sequence[Any], context: Count) -> None:
        self._scalar, self._networks, self._context = scalar, networks, context

    def num_params(self, shape: torch.Size) -> int:
        return 2 * math.prod(shape) + self._context

    def __call__(self, params: Tensor, shape: torch.Size) -> Any:
        k = math.prod(shape)
        loc, log_scale, context = params.split([k, k, self._context], dim=-1)
        steps: list[Any] = [
            Autoregressive(self._scalar, network, context) for network in self._networks
        ]
        steps.append(AffineTransform(loc, log_scale.exp(), event_dim=1, cache_size=1))
        if len(shape) != 1:
            steps.append(ReshapeTransform(torch.Size((k,)), shape, cache_size=1))
        base = Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        return TransformedDistribution(base, steps)


def conditioners(
    scalar: Scalar, size: int, context: int, hidden: tuple[int, ...], steps: int
) -> nn.ModuleList:
    """Networks of a flow's steps, alternately forward and reversed."""
    widths = (size, context, hidden, scalar.num_parameters)
    return nn.ModuleList(Conditioner(*widths, reverse=t % 2 == 1) for t in range(steps))


def flow_size(site: Site, flow: str) -> int:
    """Number k of unconstrained values of a site.

    Raises:
        ValueError: for an affine flow of a scalar, naming the site and the flow to use.
    """
    k = math.prod(TransformedNormal(site).shape)
    if k == 1 and flow == "affine":
        raise ValueError(
            f"Site {site.name!r}: an affine flow of a scalar is a normal again. Use "
            'flow="spline", or AmortizedNormal.'
        )
    return k
