"""One encoder for all data, and a normalising flow: q(z_n | x_n) of any shape, with exact density.

    ε ~ N(0, I),   u = μ(x_n) + σ(x_n) f_T(… f_1(ε; c(x_n)) …; c(x_n)),   z_n = T(u)

    log q(z_n | x_n) = log N(ε; 0, I) - Σ_t log |det ∂f_t| - Σ log σ - log |det ∂T|

for every local continuous latent z, with (μ, log σ, c) = encoder(x_n), T the bijection onto the
site's support, and f_t autoregressive steps (`flow.py`) that read the context c and take the
coordinates in turns forwards and backwards. They start near the identity, so that training starts
from AmortizedNormal. Several sites are independent given x.

Serves what AmortizedNormal serves. Drawing and scoring a draw cost a step's network once; a score
of values from elsewhere (held still by DReG or StickingTheLanding) costs it k times.

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

from ppl_lvm.guides.parts.autoregressive_flow import Autoregressive, Conditioner
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.support_transform import TransformedNormal
from ppl_lvm.guides.parts.variational_families import NormalFamily, TransformedFactor
from ppl_lvm.nn.bijections import Affine, Scalar, Spline
from ppl_lvm.programs.signatures import Signature, Site, signature

FLOWS = ("spline", "affine")


class AmortizedFlow(EncoderGuide):
    """q(z | x) by a flow conditioned on x, for the local continuous latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some typical rows.
        flow: "spline" (rational quadratic) or "affine" (inverse autoregressive flow; vectors
            only, since of a single number it is a normal again).
        steps: how many f_t, each with a network of its own.
        context: numbers of c.
        bins, bound: of the splines: bins on [-bound, bound], in units of σ around μ; the
            identity outside.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k numbers of μ, k of log σ and c: (B, Σ (2 k + context)). If None,
            a `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.
        flow_hidden: widths of the hidden layers of the steps' networks.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        flow: str = "spline",
        steps: int = 2,
        context: int = 16,
        bins: int = 8,
        bound: float = 4.0,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (128,),
        flow_hidden: tuple[int, ...] = (32,),
    ) -> None:
        if flow not in FLOWS:
            raise ValueError(f"flow is {' or '.join(map(repr, FLOWS))}, got {flow!r}.")
        if min(steps, context, bins) < 1 or not bound > 0 or not flow_hidden:
            raise ValueError(
                "AmortizedFlow needs steps, context and bins >= 1, bound > 0 and a hidden layer in "
                f"flow_hidden; got steps={steps}, context={context}, bins={bins}, bound={bound}, "
                f"flow_hidden={flow_hidden}."
            )
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        scalar = Spline(bins, bound) if flow == "spline" else Affine()
        factors, networks = [], []
        for site in supported_sites(declared, "AmortizedFlow"):
            k = size_for(site, flow)
            networks.append(conditioners(scalar, k, context, tuple(flow_hidden), steps))
            family = Flow(scalar, list(networks[-1]), context)
            factors.append(TransformedFactor(site, declared, family))
        what = f"k of μ, k of log σ and {context} of the context for each site"
        super().__init__(declared, factors, batch, encoder=encoder, hidden=hidden, what=what)
        like = next((x for x in batch if x.is_floating_point()), torch.empty(0))
        self.networks = nn.ModuleList(networks).to(like)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        _ = self.networks  # to look at a module announces its parameters to Pyro
        super().draw(plates, *batch)


class Flow(NormalFamily):
    """μ + σ f_T(… f_1(ε; c) …; c), of the numbers μ, log σ, c.

    Args:
        scalar: what a step does to a coordinate.
        networks: a `Conditioner` for each step.
        context: numbers of c.
    """

    def __init__(self, scalar: Scalar, networks: Sequence[Any], context: int) -> None:
        self._scalar, self._networks, self._context = scalar, networks, context

    def numbers(self, shape: torch.Size) -> int:
        return 2 * math.prod(shape) + self._context

    def __call__(self, numbers: Tensor, shape: torch.Size) -> Any:
        k = math.prod(shape)
        loc, log_scale, context = numbers.split([k, k, self._context], dim=-1)
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
    """The networks of a flow of so many steps, forwards and backwards in turns."""
    widths = (size, context, hidden, scalar.numbers)
    return nn.ModuleList(Conditioner(*widths, reverse=t % 2 == 1) for t in range(steps))


def size_for(site: Site, flow: str) -> int:
    """k of a site.

    Raises:
        ValueError: for a flow that is none, naming the site and the one to use.
    """
    k = math.prod(TransformedNormal(site).shape)
    if k == 1 and flow == "affine":
        raise ValueError(
            f"{site.name!r} is a single number, of which an affine flow is a normal again. Use "
            'flow="spline", or AmortizedNormal.'
        )
    return k
