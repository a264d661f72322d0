"""Probabilistic principal component analysis (PPCA).

    z_n ~ N(0, I)                 latent    (N, D)
    x_n ~ N(W z_n + μ, σ² I)      observed  (N, P)

so that x_n ~ N(μ, W Wᵀ + σ² I): the likelihood, the posterior of z and the maximum have closed
forms. With eigenvalues λ_1 ≥ … ≥ λ_P and eigenvectors U of the data's covariance,

    σ² = mean of λ_{D+1} … λ_P,    W = U_D (Λ_D - σ² I)^½,

up to a rotation of z. A missing value (NaN) is marginalized exactly: it is left out of its row's
likelihood.

Reference:
    Tipping, Bishop (1999). Probabilistic principal component analysis.
    https://doi.org/10.1111/1467-9868.00196, equations 7 and 8.
"""

import torch
from torch import Tensor

from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.factors.linear_gaussian import LinearGaussianModel


class PPCA(LinearGaussianModel):
    """D normal factors of P columns with one noise variance.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        floor: smallest noise variance, as a share of the mean variance of the data's columns.
    """

    example_batch = staticmethod(example_rows)
    one_noise = True

    def noises(self, variance: Tensor) -> Tensor:
        """One for all columns: ()."""
        return variance.mean()

    def _without_noise(self, p: int, noise: float, floor: float) -> str:
        return (
            f"no noise is left: the rows lie in a subspace of {self.latent} dimensions, the "
            f"variance outside it is {noise:.1e} and the floor {floor:.0e}. Use a smaller "
            "latent, leave out a column that depends linearly on others, or raise floor."
        )

    def maximize(self, x: Tensor, *, correction: int = 0) -> None:
        """Set the maximum-likelihood parameters for complete rows `x` (N, P).

        `correction=1` divides the data's covariance by N - 1, as scikit-learn's PCA does.

        Raises:
            ValueError: for missing values, or where no noise is left (D ≥ P, or D ≥ N - 1).
        """
        self.infer_sizes(x)
        if x.isnan().any():
            raise ValueError(
                "PPCA.maximize: x has missing values. Use EM, which marginalizes them."
            )
        x = x.detach().double()
        N, P = x.shape
        most = min(P, N - 1) - 1
        if self.latent > most:
            remedy = (
                f"Use latent={most} or fewer." if most > 0 else "Give more rows, or more columns."
            )
            raise ValueError(
                f"latent={self.latent} directions of {P} columns in {N} rows leave no "
                f"noise. {remedy}"
            )
        centered = x - x.mean(0)
        _, singular, V = torch.linalg.svd(centered, full_matrices=False)
        values = singular.square() / (N - correction)  # 0 beyond N
        D = self.latent
        noise = (values[D:].sum() / (P - D)).clamp(min=self.least.double())
        W = V[:D].mT * (values[:D] - noise).clamp(min=0).sqrt()
        self.set_em_state({"W": W, "mu": x.mean(0), "noise": noise})
