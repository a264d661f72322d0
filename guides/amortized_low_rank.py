"""Amortized low-rank normal: covariance along a few directions.

    q(z_n | x_n) = N(μ(x_n), D(x_n) D(x_n)ᵀ + diag σ²(x_n)),   (μ, log σ, D - D₀) = encoder(x_n)

for every local continuous latent z whose value is a vector of k unconstrained values. D is (k, r);
its columns are the r directions along which latents are correlated. The guide lies between
AmortizedNormal (r = 0) and AmortizedMultivariateNormal (any covariance): an encoder has (2 + r) k
outputs instead of k + k², and a step takes k r² operations per row instead of k³. Several sites are
independent given x.

Serves models that AmortizedNormal serves, if the sites are vectors.

Reference:
    Rezende, Mohamed, Wierstra (2014). Stochastic backpropagation and approximate inference in
    deep generative models. https://arxiv.org/abs/1401.4082, section 4.3 (there with r = 1, for the
    precision; here for the covariance, with any r).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.authoring import Signature
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.site_guide import Latents, serving, signature_of
from ppl_lvm.guides.parts.variational_families import LowRankFamily, vector_factors

GUIDE = "AmortizedLowRank"


@serving(Latents.LOCAL_CONTINUOUS, description="low-rank normals from one encoder")
class AmortizedLowRank(EncoderGuide):
    """q(z | x) = N(μ(x), D(x) D(x)ᵀ + diag σ²(x)) for the local vector latents of a model.

    Args:
        model: the model, or its signature.
        batch: arguments of the model: some typical rows.
        rank: r, the columns of D.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k values of μ, k of log σ and k r of D - D₀, row by row (D₀: see
            `variational_families.py`): (B, Σ (2 + r) k). If None, a `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and the remedy.
    """

    accepts_signature = True

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        rank: Count = 2,
        encoder: nn.Module | None = None,
        hidden: tuple[Count, ...] = (128,),
    ) -> None:
        if rank < 1:
            raise ValueError(f"{GUIDE}: rank={rank} is below 1. Use AmortizedNormal.")
        model_signature = signature_of(model, *batch)
        sites = supported_sites(model_signature, GUIDE)
        factors = vector_factors(sites, model_signature, LowRankFamily(rank), GUIDE)
        outputs = f"k of μ, k of log σ and {rank} k of D - D₀ for each site"
        super().__init__(
            model_signature, factors, batch, encoder=encoder, hidden=hidden, outputs=outputs
        )
