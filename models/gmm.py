"""Gaussian mixture by maximum likelihood.

    z_n ~ Categorical(π)         latent    (N,)
    x_n ~ N(μ_{z_n}, Σ_{z_n})    observed  (N, P)

π, μ and Σ are parameters, estimated by maximum likelihood with z enumerated: the bound is log p(x)
itself, and the guide is empty.

The likelihood of a mixture is unbounded: a component on too few distinct rows can shrink its
variance, and its density there grows without end. So every covariance has a floor,

    Σ_k = L_k L_kᵀ + floor · diag(s²),    s the columns' standard deviations in the data,

and `degenerate` reports a component that has sunk to it.

A missing value (NaN) is marginalized from its row's likelihood, exactly.

References:
    Arthur, Vassilvitskii (2007). k-means++: the advantages of careful seeding.
    Ghahramani, Jordan (1994). Supervised learning from incomplete data via an EM approach.
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.cholesky import cholesky, cholesky_above
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.mixtures import batched_e_step, degeneracy, em
from ppl_lvm.models.parts.mixtures.missing import MarginalNormal, impute
from ppl_lvm.models.parts.mixtures.moments import moments, restart_clusters, shrunken_moments
from ppl_lvm.models.parts.mixtures.whitened_normal import WhitenedNormal
from ppl_lvm.models.parts.row_checks import mean_imputed
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.units import ColumnUnits

COVARIANCES = ("full", "tied", "diag", "spherical")
# Entries of the matrices, one per row and component, of rows with missing values in one block.
MARGINAL_NUMBERS = 2**22


class GaussianMixture(LazilySized, PyroModule):
    """K Gaussians over P columns, by maximum likelihood.

    Args:
        components: K.
        observed: P. If None, inferred from the first batch or a loaded state.
        covariance: "full" (one matrix per component), "tied" (one matrix for all), "diag" (one
            variance per column and component) or "spherical" (one variance per component).
        floor: smallest variance in any direction, as a share of s² (of its mean if spherical).
    """

    example_batch = staticmethod(example_rows)

    units: ColumnUnits  # s
    weights: Tensor  # π (K,)
    means: Tensor  # μ (K, P)
    scale_tril: Tensor  # L (K, P, P), or (P, P) if tied
    scale: Tensor  # in place of L: (K, P) if diag, (K,) if spherical
    has_missing: Tensor  # (): True if `initialize` saw missing values

    def __init__(
        self,
        components: Count = 3,
        observed: Count | None = None,
        covariance: str = "full",
        floor: Positive = 1e-6,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(unknown("covariance", covariance, COVARIANCES))
        self.components = components
        self.covariance = covariance
        self.floor = floor
        # A buffer, since a captured step cannot read its rows.
        self.register_buffer("has_missing", torch.tensor(False))
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P); NaN where a value is missing, if `initialize` saw missing values."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if self.components > 1:
                z = pyro.sample("z", Categorical(self.weights), infer={"enumerate": "parallel"})
            pyro.sample("x", self._component(z, bool(self.has_missing)), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Start from k-means with k-means++ centers under torch's seed.

        Missing values are replaced by their columns' means here only.

        Raises:
            ValueError: for fewer rows than components, or a column without a value.
        """
        self.initialize_restart(0, x)

    def initialize_restart(self, restart: int, x: Tensor) -> None:
        """Start restart number `restart` of EM: see `restart_clusters`."""
        self.infer_sizes(x)
        self.has_missing.fill_(bool(x.isnan().any()))
        imputed = mean_imputed(x)
        self.units.set_from(x)
        r = restart_clusters(self.units.standardize(imputed), self.components, restart)
        self._set(*shrunken_moments(imputed, r))

    def degenerate(self, x: Tensor) -> str | None:
        """Reason to reject these parameters although their likelihood is high, or None.

        A component has collapsed if its rows, weighted by responsibility, vary in some direction by
        less than ten floors (in columns divided by s) or by no more than the rounding of their
        values: duplicated rows, no more distinct rows than columns, or a column that is constant
        within the component. Its likelihood then depends on the floor and not on the data. Where
        all rows are as flat, the fault is a column's, which is named.
        """
        self.infer_sizes(x)
        x = x.detach().double()
        state = self.em_state()
        sums, _ = self.e_step(state, x)
        # The M-step without a floor, missing values marginalized.
        free = em.maximize(state, sums, self.covariance, None)
        s = self.units.variance.double().sqrt().expand(x.shape[1])
        weights, means, S = free["weights"], free["means"] / s, self._dense(free) / (s[:, None] * s)
        flat = degeneracy.flattest(S, spherical=self.covariance == "spherical")
        spread = degeneracy.directional_variance(flat, S).clamp(min=0)
        overall = degeneracy.total_covariance(weights, means, S)
        everywhere = degeneracy.directional_variance(flat, overall)
        rounding = degeneracy.rounding(x) / (s[:, None] * s)
        least = degeneracy.directional_variance(flat, rounding).clamp(min=10 * self.floor)
        # An empty component has not collapsed.
        sunk = (sums["rows"] > 0.5) & (spread <= least)
        for k in torch.where(sunk, spread, torch.inf).argsort()[: int(sunk.sum())].tolist():
            if everywhere[k] > 10 * least[k]:
                return self._collapsed(k, x, float(spread[k]), float(least[k]))
            if spread[k] <= 2.02 * self.floor or least[k] > 10 * self.floor:
                return degeneracy.describe_flat_direction(flat[k], overall)
        return None

    def _collapsed(self, k: int, x: Tensor, spread: float, least: float) -> str:
        rows = x[self.responsibilities(x)[:, k] > 0.5]
        distinct = len(rows.nan_to_num(torch.inf).unique(dim=0))
        rounding = f" and {least:.0e} by rounding" if least > 10 * self.floor else ""
        return (
            f"component {k} has collapsed: it rests on {len(rows)} of {len(x)} rows, {distinct} of "
            f"them distinct, whose least variance is {spread:.1e} beside a floor of "
            f"{self.floor:.0e}{rounding}. Its likelihood grows without bound as the floor falls. "
            "Restart, use fewer components or a simpler covariance, or raise floor."
        )

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x_n) of rows `x` (N, P), in nats: (N,)."""
        self.infer_sizes(x)
        return self._log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(z_n = k | x_n) of rows `x` (N, P): (N, K)."""
        self.infer_sizes(x)
        return self._log_joint(x).softmax(-1).detach()

    def impute(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        """Rows `x` (N, P) with E[x_p | present] for NaN; or draws (num_samples, N, P)."""
        r = self.responsibilities(x)
        if self.covariance in ("full", "tied"):
            L = cholesky(self._above_floor(self.scale_tril))
        else:
            L = torch.diag_embed(self._scale())
        return impute(r, self.means, L, x, num_samples).detach()

    def maximize(self, x: Tensor, r: Tensor) -> None:
        """Set the maximum-likelihood parameters for responsibilities `r` (N, K)."""
        self.infer_sizes(x)
        self._set(*moments(x, r))

    def em_state(self) -> dict[str, Tensor]:
        """θ of expectation-maximization (`ppl_lvm.fitting.em`), see `parts.mixtures.em`.

        Its weights sum to one in doubles, and its smallest variance is that of `m_step`, so that
        the first step cannot lower the likelihood.
        """
        weights, least = self.weights.detach().double(), self.least.double()
        if self.covariance in ("full", "tied"):
            variance = self._above_floor(self.scale_tril.detach())
            variance = em.raise_eigenvalues(variance, 2 * least)
        else:
            variance = torch.maximum(self.scale.detach().double() ** 2, least) + least
        means = self.means.detach().double()
        return {"weights": weights / weights.sum(), "means": means, "variance": variance}

    def set_em_state(self, state: dict[str, Tensor]) -> None:
        """Set the parameters to θ."""
        self._set(state["weights"], state["means"], self._dense(state))

    def e_step(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Sums of responsibilities over rows `x` (N, P), and log p(x): see `em.expect`."""
        return em.expect(state, x, self.covariance)

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """θ' in closed form; the smallest variance is twice the floor, as in `initialize`."""
        return em.maximize(state, statistics, self.covariance, 2 * self.least.double())

    def e_steps(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`e_step` of several restarts (first dimension of θ), in two shared matrix products."""
        return batched_e_step.expect(state, x, self.covariance)

    def transport_statistics(
        self,
        state: dict[str, Tensor],
        new: dict[str, Tensor],
        made_of: dict[str, Tensor],
        statistics: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Statistics taken at θ, in the coordinates of θ', the M-step of `made_of`."""
        return em.transport_statistics(state, new, statistics, self.covariance)

    @property
    def covariance_matrix(self) -> Tensor:
        """Σ (K, P, P), for every form of the covariance."""
        means = self.means
        eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
        if self.covariance in ("full", "tied"):
            return (self._chol() @ self._chol().mT).expand(len(means), *eye.shape)
        return self._scale()[..., None] ** 2 * eye

    def _dense(self, state: dict[str, Tensor]) -> Tensor:
        """Σ (K, P, P) of θ, for every form of the covariance."""
        means, variance = state["means"], state["variance"]
        if self.covariance in ("diag", "spherical"):
            variance = torch.diag_embed(variance.reshape(len(means), -1).expand_as(means))
        return variance.expand(*means.shape, means.shape[1])

    def _log_joint(self, x: Tensor) -> Tensor:
        """log π_k + log N(x_n; μ_k, Σ_k): (N, K)."""
        every = torch.arange(self.components, device=x.device)
        missing = bool(x.isnan().any())
        size = (
            max(1, MARGINAL_NUMBERS // (self.components * x.shape[1] ** 2)) if missing else len(x)
        )
        component = self._component(every, missing)
        parts = [component.log_prob(rows.unsqueeze(-2)) for rows in x.split(max(size, 1))]
        return torch.cat(parts) + self.weights.log()

    def _component(self, z: Tensor, missing: bool) -> Any:
        """The Gaussian of component z, for indices of any shape.

        Its log-probability needs memory for K N P numbers, not K N P²: the rows of a component
        share one matrix.
        """
        if self.covariance in ("full", "tied"):
            form = MarginalNormal if missing else WhitenedNormal
            L = self._chol()
            return form(self.means[z], scale_tril=L if self.covariance == "tied" else L[z])
        if missing:
            return MarginalNormal(self.means[z], scale_tril=torch.diag_embed(self._scale()[z]))
        return Normal(self.means[z], self._scale()[z]).to_event(1)

    def _chol(self) -> Tensor:
        """The Cholesky factor of Σ = L Lᵀ + floor · diag(s²), computed in doubles.

        In single precision a floor of 1e-6 is lost beside columns of 1,000, and Σ has no factor
        where one column is the sum of others.
        """
        return cholesky(self._above_floor(self.scale_tril)).to(self.scale_tril)

    @property
    def least(self) -> Tensor:
        """The smallest variances: floor · s², (P,), or () if spherical."""
        return self.floor * self.units.variance

    def _above_floor(self, L: Tensor) -> Tensor:
        """L Lᵀ + floor · diag(s²), in doubles."""
        L = L.double()
        return L @ L.mT + self.least.double().diag()

    def _scale(self) -> Tensor:
        """Standard deviations (K, P) of the diagonal forms."""
        scale = (self.scale**2 + self.least).sqrt()
        return scale if self.covariance == "diag" else scale[:, None].expand_as(self.means)

    def _set(self, weights: Tensor, means: Tensor, scatter: Tensor) -> None:
        """Set π (K,), μ (K, P) and covariances (K, P, P), reduced to this form."""
        dtype = self.means.dtype
        self.weights = weights.to(dtype)
        self.means = means.to(dtype)
        if self.covariance == "full":
            self.scale_tril = cholesky_above(scatter, self.least).to(dtype)
        elif self.covariance == "tied":
            pooled = torch.einsum("k,kpq->pq", weights, scatter)
            self.scale_tril = cholesky_above(pooled, self.least).to(dtype)
        else:
            variance = scatter.diagonal(dim1=-2, dim2=-1)
            if self.covariance == "spherical":
                variance = variance.mean(-1)
            least = self.least.double()
            self.scale = torch.maximum(variance - least, least).sqrt().to(dtype)

    def resize(self, observed: int, **like: Any) -> None:
        K, P = self.components, observed
        self.units = ColumnUnits(P, common=self.covariance == "spherical", **like)
        if K > 1:
            self.weights = PyroParam(torch.full((K,), 1 / K, **like), constraints.simplex)
        else:  # constant 1: nothing to learn
            self.register_buffer("weights", torch.ones(1, **like))
        # Equal means would receive equal gradients and stay equal. The random state is preserved,
        # so that `initialize` draws the same numbers in either order.
        with preserve_rng():
            self.means = self.units.location(torch.randn(K, P, **like))
        eye = torch.eye(P, **like)
        if self.covariance == "full":
            self.scale_tril = self.units.rows(eye.repeat(K, 1, 1), constraints.lower_cholesky)
        elif self.covariance == "tied":
            self.scale_tril = self.units.rows(eye, constraints.lower_cholesky)
        else:
            shape = (K, P) if self.covariance == "diag" else (K,)
            self.scale = self.units.spread(torch.ones(shape, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (state["means_unconstrained"].shape[1],)
