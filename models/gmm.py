"""Gaussian mixture: K clusters, each a Gaussian.

    z_n ~ Categorical(π)         latent    (N,)
    x_n ~ N(μ_{z_n}, Σ_{z_n})    observed  (N, P)

π, μ and Σ are parameters, to be found by maximum likelihood with z enumerated, so that the bound
is log p(x) itself. The guide is empty.

The likelihood of a mixture is unbounded: a component that rests on too few distinct rows can
shrink its variance, and its density there grows, without end. So every covariance has a floor,

    Σ_k = L_k L_kᵀ + floor · I,

and `degenerate` says when a component has sunk to it.

A value that is missing (NaN) is integrated out of its row's likelihood, exactly.

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

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.models.parts.cholesky import cholesky, cholesky_above
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.mixtures import batched_e_step as mixture_features
from ppl_lvm.models.parts.mixtures import degeneracy as mixture_flat
from ppl_lvm.models.parts.mixtures import em as mixture_em
from ppl_lvm.models.parts.mixtures.missing import MarginalNormal
from ppl_lvm.models.parts.mixtures.moments import moments, shrunken_moments, start_clusters
from ppl_lvm.models.parts.mixtures.whitened_normal import WhitenedNormal
from ppl_lvm.models.parts.row_checks import mean_imputed
from ppl_lvm.nn.lazy import LazilySized

COVARIANCES = ("full", "tied", "diag", "spherical")
# Log-densities of rows with holes take a matrix a row and component: this many numbers at once.
MARGINAL_NUMBERS = 2**22


class GaussianMixture(LazilySized, PyroModule):
    """K Gaussians over P columns, by maximum likelihood.

    Args:
        components: K.
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        covariance: "full" (a matrix a component), "tied" (one matrix for all), "diag" (a variance
            a column a component) or "spherical" (one variance a component).
        floor: the least variance in any direction, in squared units of the data.
    """

    example_batch = staticmethod(example_rows)

    weights: Tensor  # π (K,)
    means: Tensor  # μ (K, P)
    scale_tril: Tensor  # L (K, P, P), or (P, P) if tied
    scale: Tensor  # in place of L: (K, P) if diag, (K,) if spherical
    has_missing: Tensor  # (), whether values may be missing: `initialize` looks

    def __init__(
        self,
        components: int = 3,
        observed: int | None = None,
        covariance: str = "full",
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(
                f"There is no covariance {covariance!r}; choose from {', '.join(COVARIANCES)}."
            )
        if components < 1 or not floor > 0:
            raise ValueError(
                f"A mixture needs at least one component and a floor above zero; got "
                f"components={components}, floor={floor}."
            )
        self.components = components
        self.covariance = covariance
        self.floor = floor
        # Kept with the parameters: a step must not look at its rows to know (it may be captured).
        self.register_buffer("has_missing", torch.tensor(False))
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P); NaN where a value is missing, if `initialize` saw such."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            z = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if self.components > 1:
                z = pyro.sample("z", Categorical(self.weights), infer={"enumerate": "parallel"})
            pyro.sample("x", self._component(z, bool(self.has_missing)), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Start from k-means under torch's seed, its centres chosen by k-means++.

        For the start alone, missing values are replaced by their columns' means.

        Raises:
            ValueError: for fewer rows than components, or a column without a value.
        """
        self.infer_sizes(x)
        self.has_missing.fill_(bool(x.isnan().any()))
        whole = mean_imputed(x)
        self._set(*shrunken_moments(whole, start_clusters(whole, self.components)))

    def degenerate(self, x: Tensor) -> str | None:
        """Why these parameters must not be chosen although their likelihood is high, or None.

        A component has collapsed if the rows it explains, weighted by responsibility, vary by
        less than ten floors in some direction, or by no more than the rounding of their values:
        on duplicated rows, on no more distinct rows than columns, on a column that is constant
        within it. Its likelihood then says how low the floor is and nothing about the data.
        Where all rows are as flat, not the component is at fault but a column, which is named.
        """
        self.infer_sizes(x)
        x = x.detach().double()
        state = self.em_state()
        sums, _ = self.e_step(state, x)
        # What the M-step makes of the rows without a floor, gaps integrated out.
        free = mixture_em.maximize(state, sums, self.covariance, -torch.inf)
        weights, means, S = free["weights"], free["means"], self._dense(free)
        flat = mixture_flat.flattest(S, spherical=self.covariance == "spherical")
        spread = mixture_flat.directional_variance(flat, S).clamp(min=0)
        overall = mixture_flat.total_covariance(weights, means, S)
        everywhere = mixture_flat.directional_variance(flat, overall)
        least = mixture_flat.directional_variance(flat, mixture_flat.rounding(x)).clamp(
            min=10 * self.floor
        )
        # A component that explains no row cannot be said to collapse.
        sunk = (sums["rows"] > 0.5) & (spread <= least)
        for k in torch.where(sunk, spread, torch.inf).argsort()[: int(sunk.sum())].tolist():
            if everywhere[k] > 10 * least[k]:
                return self._collapsed(k, x, float(spread[k]), float(least[k]))
            if spread[k] <= 2.02 * self.floor or least[k] > 10 * self.floor:  # else: it is seen
                return mixture_flat.describe_flat_direction(flat[k], overall)
        return None

    def _collapsed(self, k: int, x: Tensor, spread: float, least: float) -> str:
        own = x[self.responsibilities(x)[:, k] > 0.5]
        distinct = len(own.nan_to_num(torch.inf).unique(dim=0))
        rounding = f" and {least:.0e} by rounding" if least > 10 * self.floor else ""
        return (
            f"component {k} has collapsed: it rests on {len(own)} of {len(x)} rows, {distinct} of "
            f"them distinct, whose least variance is {spread:.1e} beside a floor of "
            f"{self.floor:.0e}{rounding}. Its likelihood grows without bound as the floor falls. "
            "Start again, use fewer components or a simpler covariance, or raise floor."
        )

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x_n) of rows `x` (N, P), in nats: (N,)."""
        self.infer_sizes(x)
        return self._log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(z_n = k | x_n) of rows `x` (N, P): (N, K)."""
        self.infer_sizes(x)
        return self._log_joint(x).softmax(-1).detach()

    def maximize(self, x: Tensor, r: Tensor) -> None:
        """Set the parameters that are most likely given responsibilities `r` (N, K)."""
        self.infer_sizes(x)
        self._set(*moments(x, r))

    def em_state(self) -> dict[str, Tensor]:
        """θ of expectation-maximisation (`ppl_lvm.fitting.em`), as `mixture_em` describes it.

        Its weights sum to one in doubles, and its least variance is that of `m_step`: or the first
        step would lower the likelihood.
        """
        weights = self.weights.detach().double()
        if self.covariance in ("full", "tied"):
            variance = self._above_floor(self.scale_tril.detach())
            variance = mixture_em.raise_eigenvalues(variance, 2 * self.floor)
        else:
            variance = (self.scale.detach().double() ** 2).clamp(min=self.floor) + self.floor
        means = self.means.detach().double()
        return {"weights": weights / weights.sum(), "means": means, "variance": variance}

    def set_em_state(self, state: dict[str, Tensor]) -> None:
        """Take over θ."""
        self._set(state["weights"], state["means"], self._dense(state))

    def e_step(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Responsibilities' sums over rows `x` (N, P), and log p(x): see `mixture_em.expect`."""
        return mixture_em.expect(state, x, self.covariance)

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """θ' in closed form; the least variance is twice the floor, as in every start."""
        return mixture_em.maximize(state, statistics, self.covariance, 2 * self.floor)

    def e_steps(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`e_step` of many starts, leading in θ, in two matrix products that they share."""
        return mixture_features.expect(state, x, self.covariance)

    def transport_statistics(
        self,
        state: dict[str, Tensor],
        new: dict[str, Tensor],
        made_of: dict[str, Tensor],
        statistics: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The sums that were taken at θ, as they are at θ', the M-step of `made_of`."""
        return mixture_em.transport_statistics(state, new, statistics, self.covariance)

    @property
    def covariance_matrix(self) -> Tensor:
        """Σ (K, P, P), whichever form the covariance has."""
        means = self.means
        eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
        if self.covariance in ("full", "tied"):
            return (self._chol() @ self._chol().mT).expand(len(means), *eye.shape)
        return self._scale()[..., None] ** 2 * eye

    def _dense(self, state: dict[str, Tensor]) -> Tensor:
        """Σ (K, P, P) of θ, whichever form it has there."""
        means, variance = state["means"], state["variance"]
        if self.covariance in ("diag", "spherical"):
            variance = torch.diag_embed(variance.reshape(len(means), -1).expand_as(means))
        return variance.expand(*means.shape, means.shape[1])

    def _log_joint(self, x: Tensor) -> Tensor:
        """log π_k + log N(x_n; μ_k, Σ_k): (N, K)."""
        every = torch.arange(self.components, device=x.device)
        holes = bool(x.isnan().any())
        size = max(1, MARGINAL_NUMBERS // (self.components * x.shape[1] ** 2)) if holes else len(x)
        component = self._component(every, holes)
        parts = [component.log_prob(rows.unsqueeze(-2)) for rows in x.split(max(size, 1))]
        return torch.cat(parts) + self.weights.log()

    def _component(self, z: Tensor, holes: bool) -> Any:
        """The Gaussian of component z, for indices of any shape.

        Its log-probability needs memory for K N P numbers and not K N P²: one matrix a component
        serves all its rows.
        """
        if self.covariance in ("full", "tied"):
            form = MarginalNormal if holes else WhitenedNormal
            L = self._chol()
            return form(self.means[z], scale_tril=L if self.covariance == "tied" else L[z])
        if holes:
            return MarginalNormal(self.means[z], scale_tril=torch.diag_embed(self._scale()[z]))
        return Normal(self.means[z], self._scale()[z]).to_event(1)

    def _chol(self) -> Tensor:
        """The Cholesky factor of Σ = L Lᵀ + floor · I.

        Made in doubles: beside columns of 1,000 a floor of 1e-6 is nothing in single precision,
        and where one column is the sum of others Σ would have no factor.
        """
        return cholesky(self._above_floor(self.scale_tril)).to(self.scale_tril)

    def _above_floor(self, L: Tensor) -> Tensor:
        """L Lᵀ + floor · I, in doubles."""
        L = L.double()
        return L @ L.mT + self.floor * torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)

    def _scale(self) -> Tensor:
        """Standard deviations (K, P) of the diagonal forms."""
        scale = (self.scale**2 + self.floor).sqrt()
        return scale if self.covariance == "diag" else scale[:, None].expand_as(self.means)

    def _set(self, weights: Tensor, means: Tensor, scatter: Tensor) -> None:
        """Take over π (K,), μ (K, P) and covariances (K, P, P), reduced to this form."""
        dtype = self.means.dtype
        self.weights = weights.to(dtype)
        self.means = means.to(dtype)
        if self.covariance == "full":
            self.scale_tril = cholesky_above(scatter, self.floor).to(dtype)
        elif self.covariance == "tied":
            pooled = torch.einsum("k,kpq->pq", weights, scatter)
            self.scale_tril = cholesky_above(pooled, self.floor).to(dtype)
        else:
            variance = scatter.diagonal(dim1=-2, dim2=-1)
            if self.covariance == "spherical":
                variance = variance.mean(-1)
            self.scale = (variance - self.floor).clamp(min=self.floor).sqrt().to(dtype)

    def resize(self, observed: int, **like: Any) -> None:
        K, P = self.components, observed
        if K > 1:
            self.weights = PyroParam(torch.full((K,), 1 / K, **like), constraints.simplex)
        else:  # 1, whatever the data: nothing to learn
            self.register_buffer("weights", torch.ones(1, **like))
        # Equal means would receive equal gradients and never part. Forked, so that a start from
        # data draws the same whether the sizes were given before it or come with it.
        with preserve_rng():
            self.means = PyroParam(torch.randn(K, P, **like), constraints.real)
        eye = torch.eye(P, **like)
        if self.covariance == "full":
            self.scale_tril = PyroParam(eye.repeat(K, 1, 1), constraints.lower_cholesky)
        elif self.covariance == "tied":
            self.scale_tril = PyroParam(eye, constraints.lower_cholesky)
        else:
            shape = (K, P) if self.covariance == "diag" else (K,)
            self.scale = PyroParam(torch.ones(shape, **like), constraints.positive)

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (state["means_unconstrained"].shape[1],)
