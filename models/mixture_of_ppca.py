"""Mixture of probabilistic principal component analyzers.

    k_n ~ Categorical(π)                          latent    (N,)
    z_n ~ N(0, I)                                 latent    (N, D), marginalized
    x_n ~ N(W_{k_n} z_n + μ_{k_n}, σ²_{k_n} I)    observed  (N, P)

so that x_n | k ~ N(μ_k, W_k W_kᵀ + σ_k² I): a Gaussian mixture whose covariances have P D + 1
parameters per component (less rotations) in place of P (P + 1) / 2. The E-step is a mixture's. In
the M-step each responsibility-weighted covariance S_k, with eigenvalues λ and eigenvectors U, gives

    σ_k² = mean of λ_{D+1} … λ_P,    W_k = U_D (Λ_D - σ_k² I)^½,

the maximum under the model, z being marginalized in both steps. One component is PPCA, and
D = P - 1 is a mixture of full covariances. A missing value (NaN) is marginalized.

Reference:
    Tipping, Bishop (1999). Mixtures of probabilistic principal component analyzers.
    https://doi.org/10.1162/089976699300016728, appendix C.
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.cholesky import cholesky
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.factors.factor_normal import FactorNormal
from ppl_lvm.models.parts.mixtures import batched_e_step, em
from ppl_lvm.models.parts.mixtures.missing import MarginalNormal, impute
from ppl_lvm.models.parts.mixtures.moments import restart_clusters, shrunken_moments
from ppl_lvm.models.parts.row_checks import flat_column, mean_imputed, rounding_variance
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.units import ColumnUnits

State = dict[str, Tensor]


class MixtureOfPPCA(LazilySized, PyroModule):
    """K clusters, each with D principal directions and one noise variance.

    Args:
        components: K.
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        floor: smallest noise variance, as a share of the mean variance of the data's columns.
    """

    example_batch = staticmethod(example_rows)

    units: ColumnUnits
    weights: Tensor  # π (K,)
    means: Tensor  # μ (K, P)
    W: Tensor  # (K, P, D)
    scale: Tensor  # s (K,), σ² = s² + least
    has_missing: Tensor  # (): True if `initialize` saw missing values

    def __init__(
        self,
        components: Count = 3,
        latent: Count = 1,
        observed: Count | None = None,
        floor: Positive = 1e-6,
    ) -> None:
        super().__init__()
        self.components = components
        self.latent = latent
        self.floor = floor
        self.register_buffer("has_missing", torch.tensor(False))
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P); NaN where a value is missing, if `initialize` saw missing values."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            k = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if self.components > 1:
                k = pyro.sample("k", Categorical(self.weights), infer={"enumerate": "parallel"})
            pyro.sample("x", self._component(k, bool(self.has_missing)), obs=x)

    @property
    def noise(self) -> Tensor:
        """σ² (K,)."""
        return self.scale**2 + self.least

    @property
    def least(self) -> Tensor:
        """The smallest noise: floor times the squared unit, ()."""
        return self.floor * self.units.variance

    @property
    def covariance_matrix(self) -> Tensor:
        """W_k W_kᵀ + σ_k² I (K, P, P)."""
        return _covariance(self._theta())

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) of rows `x` (N, P), exactly, in nats: (N,)."""
        self.infer_sizes(x)
        return self._log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k_n = k | x_n) of rows `x` (N, P): (N, K)."""
        self.infer_sizes(x)
        return self._log_joint(x).softmax(-1).detach()

    def impute(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        """Rows `x` (N, P) with E[x_p | present] for NaN; or draws (num_samples, N, P)."""
        r = self.responsibilities(x)
        L = cholesky(_covariance({name: t.double() for name, t in self._theta().items()}))
        return impute(r, self.means, L, x, num_samples).detach()

    def codes(self, x: Tensor) -> Tensor:
        """E[z_n | x_n, k] of complete rows `x` (N, P): (N, K, D).

        A component's axes are its principal ones; their signs, and the order of equal ones, are
        arbitrary.
        """
        self.infer_sizes(x)
        M = self.W.mT @ self.W + self.noise[:, None, None] * torch.eye(self.latent).to(self.W)
        d = (x[:, None] - self.means)[..., None]  # (N, K, P, 1)
        return torch.linalg.solve(M, self.W.mT @ d).squeeze(-1).detach()

    def initialize(self, x: Tensor) -> None:
        """Start from k-means under torch's seed, with missing values replaced by column means.

        Raises:
            ValueError: for fewer rows than components, D ≥ P, or a column without a value.
        """
        self.initialize_restart(0, x)

    def initialize_restart(self, restart: int, x: Tensor) -> None:
        """Start restart number `restart` of EM: see `restart_clusters`."""
        self.infer_sizes(x)
        self.has_missing.fill_(bool(x.isnan().any()))
        imputed = mean_imputed(x)
        self.units.set_from(x)
        r = restart_clusters(self.units.standardize(imputed), self.components, restart)
        weights, means, scatter = shrunken_moments(imputed, r)
        W, noise = _leading(scatter, self.latent, self.least.double())
        self.set_em_state({"weights": weights, "means": means, "W": W, "noise": noise})

    def degenerate(self, x: Tensor) -> str | None:
        """Reason to reject these parameters although their likelihood is high, or None.

        A component collapses onto few rows, or onto a flat of D dimensions that holds its rows.
        """
        rows = self.responsibilities(x).sum(0)
        occupied = rows > 0.5  # an empty component has not collapsed
        k = int(torch.where(occupied, self.noise, torch.inf).argmin())
        x, noise, floor = x.detach().double(), self.noise[k].item(), self.least.item()
        least = rounding_variance(x).mean().clamp(min=10 * floor)
        if noise > least:
            return None
        every = (x - x.nanmean(0)).square().nanmean(0).mean()
        if every <= 10 * least:
            return flat_column(None, every.item()) if noise <= 1.01 * floor else None
        return (
            f"component {k} has collapsed: the {rows[k].item():.0f} rows it explains lie in a "
            f"subspace of {self.latent} dimensions, its noise variance is {noise:.1e} beside a "
            f"floor of {floor:.0e}. Restart, use fewer components or a smaller latent, or "
            "raise floor."
        )

    def em_state(self) -> State:
        """θ of expectation-maximization (`ppl_lvm.fitting.em`), in doubles.

        Weights sum to one, and rounding leaves no noise below the floor.
        """
        state = {name: t.detach().double() for name, t in self._theta().items()}
        weights, noise = state["weights"], state["noise"].clamp(min=self.least.double())
        return {**state, "weights": weights / weights.sum(), "noise": noise}

    def set_em_state(self, state: State) -> None:
        """Set the parameters to θ."""
        dtype = self.means.dtype
        self.weights = state["weights"].to(dtype)
        self.means = state["means"].to(dtype)
        self.W = state["W"].to(dtype)
        tiny = torch.finfo(dtype).tiny  # a scale of 0 has no logarithm
        self.scale = (state["noise"] - self.least).clamp(min=tiny).sqrt().to(dtype)

    def e_step(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """The sums of a mixture with full covariances: see `em.expect`."""
        return em.expect(_dense(state), x, "full")

    def e_steps(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """`e_step` of several restarts (first dimension of θ), in two shared matrix products."""
        return batched_e_step.expect(_dense(state), x, "full")

    def m_step(self, state: State, statistics: State) -> State:
        """θ' in closed form; the smallest noise variance is the floor."""
        new = em.maximize(_dense(state), statistics, "full", None)
        W, noise = _leading(new["variance"], self.latent, self.least.double())
        return {"weights": new["weights"], "means": new["means"], "W": W, "noise": noise}

    def transport_statistics(
        self, state: State, new: State, made_of: State, statistics: State
    ) -> State:
        """Statistics taken at θ, in the coordinates of θ', the M-step of `made_of`."""
        return em.transport_statistics(_dense(state), _dense(new), statistics, "full")

    def _theta(self) -> State:
        return {"weights": self.weights, "means": self.means, "W": self.W, "noise": self.noise}

    def _log_joint(self, x: Tensor) -> Tensor:
        """log π_k + log N(x_n; μ_k, Σ_k): (N, K)."""
        every = torch.arange(self.components, device=x.device)
        component = self._component(every, bool(x.isnan().any()))
        log_prob: Tensor = component.log_prob(x.unsqueeze(-2))
        return log_prob + self.weights.log()

    def _component(self, k: Tensor, missing: bool) -> Any:
        if missing:
            return MarginalNormal(
                self.means[k], scale_tril=cholesky(self.covariance_matrix).to(self.W)[k]
            )
        diagonal = self.noise[:, None].expand_as(self.means)
        return FactorNormal(self.means[k], self.W[k], diagonal[k])

    def resize(self, observed: int, **like: Any) -> None:
        if self.latent >= observed:
            remedy = f"Use latent={observed - 1} or fewer." if observed > 1 else ""
            raise ValueError(
                f"latent={self.latent} directions of {observed} columns leave no "
                f"noise. {remedy or 'Use GaussianMixture.'}"
            )
        K, P, D = self.components, observed, self.latent
        if K > 1:
            self.weights = PyroParam(torch.full((K,), 1 / K, **like), constraints.simplex)
        else:  # constant 1: nothing to learn
            self.register_buffer("weights", torch.ones(1, **like))
        with preserve_rng():  # so that `initialize` draws the same numbers in either order
            means, W = torch.randn(K, P, **like), torch.randn(K, P, D, **like)
        self.units = ColumnUnits(P, common=True, **like)
        self.means = self.units.location(means)
        self.W = self.units.rows(W)
        self.scale = self.units.spread(torch.ones(K, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (state["means_unconstrained"].shape[1],)


def _covariance(state: State) -> Tensor:
    W, noise = state["W"], state["noise"]
    eye = torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)
    return W @ W.mT + noise[..., None, None] * eye


def _dense(state: State) -> State:
    """θ of a mixture with full covariances."""
    weights, means = state["weights"], state["means"]
    return {"weights": weights, "means": means, "variance": _covariance(state)}


def _leading(S: Tensor, latent: int, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood W (…, P, D) and σ² (…) of covariances S (…, P, P)."""
    values, vectors = torch.linalg.eigh(S)  # ascending
    rest = values.shape[-1] - latent
    noise = values[..., :rest].mean(-1).clamp(min=floor)
    above = (values[..., rest:] - noise[..., None]).clamp(min=0).sqrt()
    W = vectors[..., rest:] * above[..., None, :]
    return W.flip(-1), noise
