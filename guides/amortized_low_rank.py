"""One encoder for all data, correlated along a few directions: q(z_n | x_n) is a low-rank normal.

    q(z_n | x_n) = N(μ(x_n), D(x_n) D(x_n)ᵀ + diag σ²(x_n)),   (μ, log σ, D - D₀) = encoder(x_n)

for every local continuous latent z whose value is a vector, of k unconstrained numbers: D is
(k, r), its columns the r directions along which latents move together. Between AmortizedNormal
(r = 0) and AmortizedMultivariateNormal (any covariance): an encoder puts out (2 + r) k numbers in
place of k + k², and a step takes k r² operations a datum in place of k³. Several sites are
independent given x.

Serves what AmortizedNormal serves, as far as the sites are vectors.

Reference:
    Rezende, Mohamed, Wierstra (2014). Stochastic backpropagation and approximate inference in
    deep generative models. https://arxiv.org/abs/1401.4082, section 4.3 (there with r = 1, for the
    precision; here for the covariance, with any r).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_lvm.guides.parts.encoder_guide import EncoderGuide, supported_sites
from ppl_lvm.guides.parts.variational_families import LowRankFamily, vectors
from ppl_lvm.programs.signatures import Signature, signature


class AmortizedLowRank(EncoderGuide):
    """q(z | x) = N(μ(x), D(x) D(x)ᵀ + diag σ²(x)) for the local vector latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some typical rows.
        rank: r, the columns of D.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k numbers of μ, k of log σ and k r of D - D₀, row by row (D₀: see
            `factors.py`): (B, Σ (2 + r) k). If None, a `RowEncoder` over all columns.
        hidden: widths of the hidden layers of the default encoder.

    Raises:
        ValueError: for a model it does not serve, naming the site and what to do.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Signature,
        *batch: Tensor,
        rank: int = 2,
        encoder: nn.Module | None = None,
        hidden: tuple[int, ...] = (128,),
    ) -> None:
        name = "AmortizedLowRank"
        if rank < 1:
            raise ValueError(f"AmortizedLowRank needs rank >= 1, got {rank}; use AmortizedNormal.")
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        factors = vectors(supported_sites(declared, name), declared, LowRankFamily(rank), name)
        what = f"k of μ, k of log σ and {rank} k of D - D₀ for each site"
        super().__init__(declared, factors, batch, encoder=encoder, hidden=hidden, what=what)
