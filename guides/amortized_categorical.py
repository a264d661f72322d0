"""One encoder for all data, discrete latents: q(z_n | x_n) gives each value its probability.

    q(z_n = c | x_n) = softmax(encoder(x_n))_c         categorical and one-hot sites, C values
    q(z_n = 1 | x_n) = σ(encoder(x_n))                 binary sites, alone or as an event

Several sites are independent given x. Draws are not reparameterised: train with an objective for
discrete guides (LeaveOneOut, VIMCO, …), or let TraceEnum_ELBO sum the guide out with
`enumerate="parallel"`.

Serves models whose latents are all local, discrete and of one of these families.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks.
    https://arxiv.org/abs/1402.0030
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
from pyro.distributions import Bernoulli, Categorical, OneHotCategorical
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.guides.amortized import arrange, beside_data, check_width
from ppl_lvm.guides.pushed import inside, open_plates, require_plain_plates
from ppl_lvm.nn import RowEncoder
from ppl_lvm.signature import Signature, Site, signature

FAMILIES = ("Bernoulli", "Categorical", "OneHotCategorical")


class AmortizedCategorical(PyroModule):
    """q(z | x) with a probability for every value of the local discrete latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns the logits of a datum's
            latents in the order of the model's code. If None, a `RowEncoder`.
        hidden: widths of the hidden layers of the default encoder.
        enumerate: "parallel" or "sequential" marks the sites for TraceEnum_ELBO; None samples.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (128,),
        enumerate: str | None = None,
    ) -> None:
        super().__init__()
        if enumerate not in (None, "parallel", "sequential"):
            raise ValueError(f"enumerate is 'parallel', 'sequential' or None, got {enumerate!r}.")
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        self._signature = declared
        self._infer = {} if enumerate is None else {"enumerate": enumerate}
        self.sites = served(declared)
        self._events = [_logits_shape(site) for site in self.sites]
        self._widths = [
            math.prod(beside_data(site, declared)) * math.prod(event)
            for site, event in zip(self.sites, self._events, strict=True)
        ]
        width = sum(self._widths)
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=width, hidden=tuple(hidden))
        self.encoder = encoder
        check_width(encoder, batch, width, [site.name for site in self.sites], "their logits")

    def forward(self, *batch: Tensor) -> None:
        self.draw(open_plates(self.sites, self._signature, len(batch[0])), *batch)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        split = self.encoder(*batch).split(self._widths, dim=-1)
        for site, event, numbers in zip(self.sites, self._events, split, strict=True):
            logits = arrange(numbers, site, self._signature, event)
            with inside(site, plates):
                pyro.sample(site.name, _distribution(site, logits), infer=dict(self._infer))


def served(declared: Signature) -> list[Site]:
    """The discrete latents.

    Raises:
        ValueError: naming the first latent that AmortizedCategorical does not serve.
    """
    for site in declared.latents:
        if not site.discrete and site.distribution != "OneHotCategorical":
            raise ValueError(
                f"AmortizedCategorical serves discrete sites, but {site.name!r} ~ "
                f"{site.distribution} is continuous. Use AmortizedNormal."
            )
        if site.distribution not in FAMILIES:
            raise ValueError(
                f"AmortizedCategorical serves {', '.join(FAMILIES)}, but {site.name!r} is "
                f"{site.distribution}. Write its guide by hand."
            )
        if not site.local:
            raise ValueError(
                f"AmortizedCategorical serves sites inside the plate 'data', but {site.name!r} is "
                'shared by all data. Add infer={"enumerate": "parallel"} to its pyro.sample, and '
                "train with TraceEnum_ELBO."
            )
        if site.distribution == "Categorical" and site.event_shape:
            raise ValueError(
                f"{site.name!r} is an event of several categorical values. Put it in a plate of "
                "its own instead of .to_event(...)."
            )
        require_plain_plates(site, declared)
    if not declared.latents:
        raise ValueError("AmortizedCategorical found no latent to serve: the model has none.")
    return list(declared.latents)


def _logits_shape(site: Site) -> tuple[int, ...]:
    if site.distribution == "Categorical":
        assert site.values is not None
        return (site.values,)
    return tuple(site.event_shape)


def _distribution(site: Site, logits: Tensor) -> Any:
    if site.distribution == "Categorical":
        return Categorical(logits=logits)
    if site.distribution == "OneHotCategorical":
        return OneHotCategorical(logits=logits)
    return Bernoulli(logits=logits).to_event(len(site.event_shape))
