"""Amortized diagonal normal: q(z_n | x_n) from one encoder.

    q(z_n | x_n) = N(μ(x_n), diag σ²(x_n)),   (μ, log σ) = encoder(x_n)

for every local continuous latent z, transformed to the site's support where that is not the real
line. Several sites are independent given x. Discrete sites that the model marks for enumeration
are left to it.

Serves models whose latents are all local (inside the plate over rows), continuous or enumerated.

Reference:
    Kingma, Welling (2014). Auto-encoding variational Bayes. https://arxiv.org/abs/1312.6114
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.authoring import Signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.variational_families import DiagonalFamily, TransformedFactor


@serving(Latents.LOCAL_CONTINUOUS, description="diagonal normals from one encoder")
class AmortizedNormal(EncoderGuide):
    """q(z | x) = N(μ(x), diag σ²(x)) for the local continuous latents of a model.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows, from which the default encoder takes the
            scale of its inputs.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k values of μ and k of log σ: (B, Σ 2 k). If None, a `RowEncoder`
            over all columns, missing values (NaN) included.
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
        model_signature = signature_of(model, *batch)
        factors = [
            TransformedFactor(site, model_signature, DiagonalFamily())
            for site in supported_sites(model_signature, "AmortizedNormal")
        ]
        outputs = "k of μ and k of log σ for each site"
        super().__init__(
            model_signature, factors, batch, encoder=encoder, hidden=hidden, outputs=outputs
        )
