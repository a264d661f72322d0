"""Probabilistic principal component analysis: D causes, P columns, one noise.

    z_n ~ N(0, I)                 latent    (N, D)
    x_n ~ N(W z_n + μ, σ² I)      observed  (N, P)

so that x_n ~ N(μ, W Wᵀ + σ² I), and the likelihood, the posterior of z and the maximum are known.
With eigenvalues λ_1 ≥ … ≥ λ_P and eigenvectors U of the data's covariance,

    σ² = mean of λ_{D+1} … λ_P,    W = U_D (Λ_D - σ² I)^½,

up to a rotation of z. A value that is missing (NaN) is left out of its row's likelihood, which
integrates it out exactly.

Reference:
    Tipping, Bishop (1999). Probabilistic principal component analysis.
    https://doi.org/10.1111/1467-9868.00196, equations 7 and 8.
"""

from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.models import linear_gaussian


class PPCA(PyroModule):
    """D normal causes behind P columns with one noise variance.

    Args:
        latent: D.
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        floor: the least noise variance, in squared units of the data.
    """

    W: Tensor  # (P, D)
    mu: Tensor  # μ (P,)
    scale: Tensor  # s (), σ² = s² + floor

    def __init__(self, latent: int = 2, observed: int | None = None, floor: float = 1e-6) -> None:
        super().__init__()
        if latent < 1 or not floor > 0:
            raise ValueError(
                f"PPCA needs latent >= 1 and floor > 0; got latent={latent}, floor={floor}."
            )
        self.latent = latent
        self.floor = floor
        self.observed: int | None = None
        if observed is not None:
            self._resize(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P), NaN where a value is missing."""
        self._meet(x)
        with pyro.plate("data", len(x), dim=-1):
            prior = Normal(x.new_zeros(self.latent, dtype=self.W.dtype), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            noise = self.noise.sqrt().expand(len(self.W))
            likelihood = Normal(z @ self.W.mT + self.mu, noise).mask(~x.isnan())
            pyro.sample("x", likelihood.to_event(1), obs=x.nan_to_num(0.0))

    def posterior(self, x: Tensor) -> None:
        """A guide: z drawn from p(z | x), exactly."""
        mean, L = linear_gaussian.posterior(self._theta(), x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(mean, precision_matrix=L @ L.mT))

    @property
    def noise(self) -> Tensor:
        """σ² ()."""
        return self.scale**2 + self.floor

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) of rows `x` (N, P), exactly, in nats: (N,)."""
        self._meet(x)
        return linear_gaussian.log_evidence(self._theta(), x)

    def initialize(self, x: Tensor) -> None:
        """Start from the columns' means, with half of the variance as noise and W at random.

        Raises:
            ValueError: for a column without a value, or data that never changes.
        """
        self._meet(x)
        means, variance = column_moments(x)
        share = 0.5 * variance.mean()
        W = torch.randn(self.W.shape, dtype=self.W.dtype).to(x) * (share / self.latent).sqrt()
        self.set_em_state({"W": W, "mu": means, "noise": share})

    def maximize(self, x: Tensor, *, correction: int = 0) -> None:
        """Set the parameters that are most likely for rows `x` (N, P) without missing values.

        `correction=1` divides the data's covariance by N - 1, as scikit-learn's PCA does.

        Raises:
            ValueError: for missing values, or where the data leave no noise (D ≥ P, or D ≥ N - 1).
        """
        self._meet(x)
        if x.isnan().any():
            raise ValueError("The closed form needs every value; use EM, which leaves NaN out.")
        x = x.detach().double()
        N, P = x.shape
        if self.latent >= min(P, N - 1):
            raise ValueError(
                f"latent={self.latent} directions of {P} columns in {N} rows leave nothing for "
                f"the noise. Use latent={min(P, N - 1) - 1} or fewer."
            )
        centred = x - x.mean(0)
        _, singular, V = torch.linalg.svd(centred, full_matrices=False)
        values = singular.square() / (N - correction)  # those beyond N are 0
        D = self.latent
        noise = (values[D:].sum() / (P - D)).clamp(min=self.floor)
        W = V[:D].mT * (values[:D] - noise).clamp(min=0).sqrt()
        self.set_em_state({"W": W, "mu": x.mean(0), "noise": noise})

    def em_state(self) -> dict[str, Tensor]:
        """θ of expectation-maximisation (`ppl_lvm.em`), as `linear_gaussian` describes it."""
        return {name: t.detach().double() for name, t in self._theta().items()}

    def set_em_state(self, state: dict[str, Tensor]) -> None:
        """Take over θ."""
        with torch.no_grad():
            self.W.copy_(state["W"])
            self.mu.copy_(state["mu"])
        tiny = torch.finfo(self.W.dtype).tiny  # a scale of 0 has no logarithm
        self.scale = (state["noise"] - self.floor).clamp(min=tiny).sqrt().to(self.W.dtype)

    def e_step(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Moments of (z, 1) summed over rows `x` (N, P), and log p(x)."""
        return linear_gaussian.expect(state, x)

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """θ' in closed form."""
        return linear_gaussian.maximize(state, statistics, self.floor)

    def _theta(self) -> dict[str, Tensor]:
        return {"W": self.W, "mu": self.mu, "noise": self.noise}

    def _meet(self, x: Tensor) -> None:
        """Take P from the data if nobody gave it; refuse data of another width."""
        check_rows(x, self.observed, type(self).__name__)
        if self.observed is None:
            self._resize(x.shape[1], dtype=x.dtype, device=x.device)

    def _resize(self, observed: int, **like: Any) -> None:
        self.observed = observed
        self.W = nn.Parameter(torch.randn(observed, self.latent, **like))
        self.mu = nn.Parameter(torch.zeros(observed, **like))
        self.scale = PyroParam(torch.ones((), **like), constraints.positive)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        mu = state.get(prefix + "mu")
        if self.observed is None and mu is not None:
            self._resize(len(mu), dtype=mu.dtype, device=mu.device)
        super()._load_from_state_dict(state, prefix, *rest)


def check_rows(x: Tensor, observed: int | None, name: str) -> None:
    """Refuse data that are no rows (N, P) of floating-point numbers.

    Raises:
        ValueError: what came, and the remedy.
    """
    if x.dim() != 2 or (observed is not None and x.shape[1] != observed):
        raise ValueError(
            f"{name} takes rows (N, {observed or 'P'}), got {tuple(x.shape)}. Choose columns, or "
            f"build it with observed={x.shape[-1]}."
        )
    if not x.is_floating_point():
        raise ValueError(f"{name} takes floating-point numbers, got {x.dtype}. Pass x.float().")


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (P,) of the values that are there, in doubles.

    Raises:
        ValueError: for a column without a value, or data that never changes.
    """
    x = x.detach().double()
    if (empty := x.isnan().all(0)).any():
        raise ValueError(
            f"Column {int(empty.nonzero()[0])} has no value in {len(x)} rows. Leave it out."
        )
    means = x.nanmean(0)
    variance = (x - means).square().nanmean(0)
    if not variance.any():
        raise ValueError(
            f"All {len(x)} rows are the same: there is no variance to model. Give other data."
        )
    return means, variance
