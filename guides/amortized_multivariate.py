"""One encoder for all data, with correlated latents: q(z_n | x_n) is a full normal.

    q(z_n | x_n) = N(μ(x_n), S(x_n) S(x_n)ᵀ + ε I),   (μ, S - I) = encoder(x_n)

for every local continuous latent z whose value is a vector, of k unconstrained numbers: k of them
for μ and k² for S. S Sᵀ is positive definite whatever S is, up to the ε = 1e-6 that keeps its
Cholesky factor finite; S starts near I rather than near zero, so that training starts from an
ordinary variance. Several sites are independent of each other given x (AmortizedJointNormal has
one covariance for all of them).

Serves what AmortizedNormal serves, as far as the sites are vectors. A step takes k³ operations a
datum for the Cholesky factors; AmortizedLowRank takes k r².
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.variational_families import FullRankFamily, vectors
from ppl_lvm.programs.signatures import Signature, signature


class AmortizedMultivariateNormal(EncoderGuide):
    """q(z | x) = N(μ(x), S(x) S(x)ᵀ) for the local vector latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k numbers of μ and k² of S - I, row by row: (B, Σ (k + k²)). If
            None, a `RowEncoder` over all columns of the batch, gaps (NaN) and all.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (128,),
    ) -> None:
        name = "AmortizedMultivariateNormal"
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        factors = vectors(supported_sites(declared, name), declared, FullRankFamily(), name)
        what = "k of μ and k² of S for each site"
        super().__init__(declared, factors, batch, encoder=encoder, hidden=hidden, what=what)
