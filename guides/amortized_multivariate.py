"""One encoder for all data, with correlated latents: q(z_n | x_n) is a full normal.

    q(z_n | x_n) = N(μ(x_n), S(x_n) S(x_n)ᵀ + ε I),   (μ, S - I) = encoder(x_n)

for every local continuous latent z whose value is a vector, of k unconstrained numbers: k of them
for μ and k² for S. S Sᵀ is positive definite whatever S is, up to the ε = 1e-6 that keeps its
Cholesky factor finite; S starts near I rather than near zero, so that training starts from an
ordinary variance. Several sites are independent of each other given x.

Serves what AmortizedNormal serves, as far as the sites are vectors. A step takes k³ operations a
datum for the Cholesky factors.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.guides.amortized import arrange, beside_data, check_width, served
from ppl_lvm.guides.pushed import PushedNormal, inside, open_plates
from ppl_lvm.nn import RowEncoder
from ppl_lvm.signature import Signature, signature

_LEAST_VARIANCE = 1e-6


class AmortizedMultivariateNormal(PyroModule):
    """q(z | x) = N(μ(x), S(x) S(x)ᵀ) for the local vector latents of a model.

    Args:
        model: the model, or its signature.
        batch: what the model is called with: some typical rows.
        encoder: a network called as `encoder(*batch)` that returns, for each site in the order of
            the model's code, k numbers of μ and k² of S - I, row by row: (B, Σ (k + k²)). If
            None, a `RowEncoder` over all columns of the batch.
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
        super().__init__()
        declared = model if isinstance(model, Signature) else signature(model, *batch)
        self._signature = declared
        self.sites = served(declared, "AmortizedMultivariateNormal")
        self._pushed = [PushedNormal(site) for site in self.sites]
        for site, pushed in zip(self.sites, self._pushed, strict=True):
            if len(pushed.shape) != 1:
                raise ValueError(
                    f"AmortizedMultivariateNormal serves vectors, but {site.name!r} has event "
                    f"shape {tuple(site.event_shape)}. Use AmortizedNormal, or let the model "
                    "sample a vector and reshape it."
                )
        self._widths = [
            math.prod(beside_data(site, declared)) * _numbers(pushed)
            for site, pushed in zip(self.sites, self._pushed, strict=True)
        ]
        width = sum(self._widths)
        if encoder is None:
            encoder = RowEncoder(*batch, outputs=width, hidden=tuple(hidden))
        self.encoder = encoder
        names = [site.name for site in self.sites]
        check_width(encoder, batch, width, names, "k of μ and k² of S for each site")

    def forward(self, *batch: Tensor) -> None:
        self.draw(open_plates(self.sites, self._signature, len(batch[0])), *batch)

    def draw(self, plates: dict[str, Any], *batch: Tensor) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        split = self.encoder(*batch).split(self._widths, dim=-1)
        for site, pushed, numbers in zip(self.sites, self._pushed, split, strict=True):
            arranged = arrange(numbers, site, self._signature, (_numbers(pushed),))
            with inside(site, plates):
                pyro.sample(site.name, pushed.push(_normal(arranged, pushed.shape[0])))


def _numbers(pushed: PushedNormal) -> int:
    """k of μ and k² of S."""
    return pushed.shape[0] + pushed.shape[0] ** 2


def _normal(numbers: Tensor, k: int) -> Any:
    """The normal with μ and S - I read from `numbers` (..., k + k²)."""
    eye = torch.eye(k, dtype=numbers.dtype, device=numbers.device)
    S = numbers[..., k:].unflatten(-1, (k, k)) + eye
    covariance = S @ S.mT + _LEAST_VARIANCE * eye
    return MultivariateNormal(numbers[..., :k], scale_tril=torch.linalg.cholesky(covariance))
