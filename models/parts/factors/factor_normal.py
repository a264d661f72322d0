"""Low-rank multivariate normal with an accurate density.

N(μ, W Wᵀ + diag ψ) for W that may be large beside ψ.

With m the mean of the factors given x,

    log N(x) = -½ [ (x - μ - W m)ᵀ diag ψ⁻¹ (x - μ - W m) + mᵀ m + log det M + Σ log 2π ψ ],
    M = I + Wᵀ diag ψ⁻¹ W,    m = M⁻¹ Wᵀ diag ψ⁻¹ (x - μ):

a sum of squares, a minimum over the factors. Pyro's own form is a difference of two terms of size
|x - μ|² / ψ, which in single precision leaves no digits of a noise of 1 beside columns of 1000.
"""

import math

import torch
from pyro.distributions import LowRankMultivariateNormal
from torch import Tensor


class FactorNormal(LowRankMultivariateNormal):
    """N(loc, W Wᵀ + diag ψ): loc μ (…, P), cov_factor W (…, P, D) and cov_diag ψ (…, P)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, in nats."""
        W, psi = self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag
        d = value - self.loc
        scaled = W / psi[..., None]
        eye = torch.eye(W.shape[-1], dtype=torch.float64, device=W.device)
        L = torch.linalg.cholesky(W.double().mT @ scaled.double() + eye)  # M, in doubles: psi may
        b = torch.einsum("...pd,...p->...d", scaled, d).double()  # be a millionth of W²
        m = torch.cholesky_solve(b[..., None], L).squeeze(-1).to(d)
        rest = d - torch.einsum("...pd,...d->...p", W, m)
        squares = (rest.square() / psi).sum(-1) + m.square().sum(-1)
        log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(d)
        return -0.5 * (squares + log_det + (2 * math.pi * psi).log().sum(-1))
