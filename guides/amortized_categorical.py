"""Amortized guide of discrete latents: probabilities from one encoder.

    q(z_n = c | x_n) = softmax(encoder(x_n))_c         categorical and one-hot sites, C values
    q(z_n = 1 | x_n) = σ(encoder(x_n))                 binary sites, scalar or as an event

Several sites are independent given x. Draws are not reparameterized: train with an objective for
discrete guides (LeaveOneOut, VIMCO, …), or let TraceEnum_ELBO enumerate the guide with
`enumerate="parallel"`.

Serves models whose latents are all local, discrete and of one of these families.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks.
    https://arxiv.org/abs/1402.0030
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.authoring import Signature, Site
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, nothing_to_serve
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.support_transform import require_plain_plates
from ppl_lvm.guides.parts.variational_families import DiscreteFactor, require_discrete_family

GUIDE = "AmortizedCategorical"


@serving(Latents.LOCAL_DISCRETE, description="a probability for every value from one encoder")
class AmortizedCategorical(EncoderGuide):
    """q(z | x) with a probability for every value of the local discrete latents of a model.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns the logits of a row's latents
            in the order of the model's code. If None, a `RowEncoder`.
        hidden: widths of the hidden layers of the default encoder.
        enumerate: "parallel" or "sequential" marks the sites for TraceEnum_ELBO; None samples.

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
        enumerate: str | None = None,
    ) -> None:
        infer = infer_enumerate(GUIDE, enumerate)
        model_signature = signature_of(model, *batch)
        factors = [
            DiscreteFactor(site, model_signature, infer)
            for site in supported_sites(model_signature)
        ]
        super().__init__(
            model_signature, factors, batch, encoder=encoder, hidden=hidden, outputs="their logits"
        )


def infer_enumerate(guide: str, enumerate: str | None) -> dict[str, Any]:
    """The `infer` dictionary for a guide's option `enumerate`."""
    if enumerate not in (None, "parallel", "sequential"):
        raise ValueError(f"{guide}: enumerate={enumerate!r}. Use 'parallel', 'sequential' or None.")
    return {} if enumerate is None else {"enumerate": enumerate}


def supported_sites(model_signature: Signature) -> list[Site]:
    """The discrete latents.

    Raises:
        ValueError: naming the first latent that AmortizedCategorical does not serve.
    """
    for site in model_signature.latents:
        if not site.discrete and site.distribution != "OneHotCategorical":
            raise ValueError(
                f"{GUIDE}: it serves discrete sites, but {site.name!r} ~ {site.distribution} is "
                "continuous. Use AmortizedNormal, or AmortizedJoint if the model has both kinds."
            )
        if not site.local:
            raise ValueError(
                f"{GUIDE}: it serves sites inside the plate 'data', but {site.name!r} is global. "
                'Add infer={"enumerate": "parallel"} to its pyro.sample, and train with '
                "TraceEnum_ELBO."
            )
        require_discrete_family(site, GUIDE)
        require_plain_plates(site, model_signature)
    if not model_signature.latents:
        raise ValueError(nothing_to_serve(GUIDE, "latent", model_signature))
    return list(model_signature.latents)
