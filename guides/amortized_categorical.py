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

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.guides.parts.encoder_guide import EncoderGuide
from ppl_lvm.guides.parts.support_transform import require_plain_plates
from ppl_lvm.guides.parts.variational_families import Values, require_values
from ppl_lvm.programs.signatures import Signature, Site, signature


class AmortizedCategorical(EncoderGuide):
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
        if enumerate not in (None, "parallel", "sequential"):
            raise ValueError(f"enumerate is 'parallel', 'sequential' or None, got {enumerate!r}.")
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        infer = {} if enumerate is None else {"enumerate": enumerate}
        factors = [Values(site, declared, infer) for site in supported_sites(declared)]
        what = "their logits"
        super().__init__(declared, factors, batch, encoder=encoder, hidden=hidden, what=what)


def supported_sites(declared: Signature) -> list[Site]:
    """The discrete latents.

    Raises:
        ValueError: naming the first latent that AmortizedCategorical does not serve.
    """
    for site in declared.latents:
        if not site.discrete and site.distribution != "OneHotCategorical":
            raise ValueError(
                f"AmortizedCategorical serves discrete sites, but {site.name!r} ~ "
                f"{site.distribution} is continuous. Use AmortizedNormal, or AmortizedJoint if "
                "the model has both kinds."
            )
        if not site.local:
            raise ValueError(
                f"AmortizedCategorical serves sites inside the plate 'data', but {site.name!r} is "
                'shared by all data. Add infer={"enumerate": "parallel"} to its pyro.sample, and '
                "train with TraceEnum_ELBO."
            )
        require_values(site, "AmortizedCategorical")
        require_plain_plates(site, declared)
    if not declared.latents:
        raise ValueError("AmortizedCategorical found no latent to serve: the model has none.")
    return list(declared.latents)
