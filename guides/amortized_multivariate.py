"""Amortized full-rank normal: a full covariance from one encoder.

    q(z_n | x_n) = N(μ(x_n), S(x_n) S(x_n)ᵀ + ε I),   (μ, S - I) = encoder(x_n)

for every local continuous latent z whose value is a vector of k unconstrained values: k outputs
for μ and k² for S. S Sᵀ is positive definite for every S, up to the ε = 1e-6 that keeps its
Cholesky factor finite. S starts near I and not near zero, so that training starts from an ordinary
variance. Several sites are independent of each other given x (AmortizedJointNormal has one
covariance for all of them).

Serves models that AmortizedNormal serves, if the sites are vectors. A step takes k³ operations per
row for the Cholesky factors; AmortizedLowRank takes k r².
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.authoring import Signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.variational_families import FullRankFamily, vector_factors

GUIDE = "AmortizedMultivariateNormal"


@serving(Latents.LOCAL_CONTINUOUS, description="full-rank normals from one encoder")
class AmortizedMultivariateNormal(EncoderGuide):
    """q(z | x) = N(μ(x), S(x) S(x)ᵀ) for the local vector latents of a model.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k values of μ and k² of S - I, row by row: (B, Σ (k + k²)). If None,
            a `RowEncoder` over all columns of the batch, missing values (NaN) included.
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
        sites = supported_sites(model_signature, GUIDE)
        factors = vector_factors(sites, model_signature, FullRankFamily(), GUIDE)
        outputs = "k of μ and k² of S for each site"
        super().__init__(
            model_signature, factors, batch, encoder=encoder, hidden=hidden, outputs=outputs
        )
