"""Linear Gaussian factor models: inference and expectation-maximization.

x = W z + μ + noise with z ~ N(0, I) and independent noise of variance ψ_p in column p. Of row n the
columns o in O_n are present (NaN elsewhere). The others are marginalized, which for independent
noise means that they are left out:

    p(z_n | x_n) = N(m_n, C_n),  C_n = (I + Σ_o w_o w_oᵀ / ψ_o)⁻¹,  m_n = C_n Σ_o w_o d_no / ψ_o,
    log p(x_n) = -½ [ Σ_o (d_no - w_oᵀ m_n)² / ψ_o + m_nᵀ m_n + log det C_n⁻¹ + Σ_o log 2π ψ_o ],

with d = x - μ. The sum of squares is a minimum over z, so nothing cancels. The E-step computes the
sums of `latent_regression` for each column's regression on z̃ = (z, 1), and the M-step is that
regression: w_p, the shift of μ_p, and ψ_p = left_p / rows_p, or one such ratio for all columns.
Parameter expansion makes it converge faster: z ~ N(η, Γ) is fitted too, from Z = Σ_n E[z̃ z̃ᵀ] over
all rows, and absorbed into W and μ, which leaves p(x) unchanged.

θ is {"W": (P, D), "mu": (P,), "noise": (P,), or () for one}, in doubles.

References:
    Rubin, Thayer (1982). EM algorithms for ML factor analysis.
    Tipping, Bishop (1999). Probabilistic principal component analysis. Appendix B.
    Liu, Rubin, Wu (1998). Parameter expansion to accelerate EM: the PX-EM algorithm. Section 4.2.
"""

import math
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.factors import latent_regression
from ppl_lvm.models.parts.row_checks import (
    column_moments,
    flat_column,
    rounding_variance,
)
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.units import ColumnUnits

State = dict[str, Tensor]


class LinearGaussianModel(LazilySized, PyroModule):
    """Base of `PPCA` and `FactorAnalysis`, which differ in the shape of the noise.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        floor: smallest noise variance, as a share of the variance of its column in the data, or of
            their mean where all columns share one noise.
    """

    one_noise: ClassVar[bool]  # whether all columns share one noise
    units: ColumnUnits
    W: Tensor  # (P, D)
    mu: Tensor  # μ (P,)
    scale: Tensor  # s, as many as there are noises: ψ = s² + least

    def __init__(
        self, latent: Count = 2, observed: Count | None = None, floor: Positive = 1e-6
    ) -> None:
        super().__init__()
        self.latent = latent
        self.floor = floor
        self.set_sizes(observed)

    def noises(self, variance: Tensor) -> Tensor:
        """The model's noise variances, from one per column (P,): their mean, or all."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P), NaN where a value is missing."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            prior = Normal(x.new_zeros(self.latent, dtype=self.W.dtype), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            noise = self.noise.sqrt().expand(len(self.W))
            likelihood = Normal(z @ self.W.mT + self.mu, noise).mask(~x.isnan())
            pyro.sample("x", likelihood.to_event(1), obs=x.nan_to_num(0.0))

    def posterior(self, x: Tensor) -> None:
        """The exact posterior p(z | x) as a guide."""
        mean, L = posterior(self._doubles(), x.double())
        q = MultivariateNormal(mean, precision_matrix=L @ L.mT)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(mean.to(x), scale_tril=q.scale_tril.to(x)))

    @property
    def noise(self) -> Tensor:
        """ψ: one variance for all columns () or one per column (P,)."""
        return self.scale**2 + self.least

    @property
    def least(self) -> Tensor:
        """The smallest noise: floor times the squared units."""
        return self.floor * self.units.variance

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) of rows `x` (N, P), exactly, in nats: (N,)."""
        self.infer_sizes(x)
        return log_evidence(self._doubles(), x.double()).to(x)

    @torch.no_grad()
    def impute(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        """Rows `x` (N, P) with E[x_p | present] for NaN; or draws (num_samples, N, P)."""
        self.infer_sizes(x)
        state, rows = self._doubles(), x.double()
        mean, L = posterior(state, rows)
        if num_samples is None:
            value = mean @ state["W"].mT + state["mu"]
        else:
            e = torch.randn(num_samples, *mean.shape, 1).to(mean)
            z = mean + torch.linalg.solve_triangular(L.mT, e, upper=True).squeeze(-1)
            value = z @ state["W"].mT + state["mu"]
            value = value + state["noise"].sqrt() * torch.randn(value.shape).to(value)
        return torch.where(x.isnan(), value, rows).to(x)

    def degenerate(self, x: Tensor) -> str | None:
        """Reason to reject these parameters although their likelihood is high, or None.

        A noise has run out where its variance is below ten floors, or no more than the rounding of
        values of that size.
        """
        noise, floor = self.noise.detach().double(), self.least.double()
        x = x.detach().double()
        variance = self.noises((x - x.nanmean(0)).square().nanmean(0))
        rounding = self.noises(rounding_variance(x))
        least = torch.maximum(rounding, 10 * floor)
        # Columns that vary as little themselves are no fault, unless the floor is reached.
        judged = (variance > 10 * least) | (rounding > 10 * floor)
        sunk = noise <= torch.where(judged, least, 1.01 * floor)
        if not sunk.any():
            return None
        p = int(torch.where(sunk, noise / floor, torch.inf).argmin())
        every = variance.reshape(-1)[p].item()
        if every <= 10 * least.reshape(-1)[p]:
            return flat_column(p if noise.dim() else None, every)
        return self._without_noise(p, noise.reshape(-1)[p].item(), floor.reshape(-1)[p].item())

    def _without_noise(self, p: int, noise: float, floor: float) -> str:
        """Text of `degenerate` where noise `p` has run out, to variance `noise`."""
        raise NotImplementedError

    def initialize(self, x: Tensor) -> None:
        """Start from the columns' means, with half of the variance as noise and random W.

        Raises:
            ValueError: for a column without a value, or constant data.
        """
        self.infer_sizes(x)
        means, variance = column_moments(x)
        self.units.set_from(x)
        noise = 0.5 * self.noises(variance)
        W = torch.randn(self.W.shape, dtype=self.W.dtype).to(x).double()
        W = W * (0.5 * variance / self.latent).sqrt()[:, None]
        self.set_em_state({"W": W, "mu": means, "noise": noise})

    def em_state(self) -> State:
        """θ of expectation-maximization (`ppl_lvm.fitting.em`)."""
        state = {name: t.detach().double() for name, t in self._theta().items()}
        return {**state, "noise": state["noise"].clamp(min=self.least.double())}

    def set_em_state(self, state: State) -> None:
        """Set the parameters to θ."""
        dtype = self.units.scale.dtype
        self.W, self.mu = state["W"].to(dtype), state["mu"].to(dtype)
        tiny = torch.finfo(dtype).tiny  # a scale of 0 has no logarithm
        self.scale = (state["noise"] - self.least).clamp(min=tiny).sqrt().to(dtype)

    def e_step(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """Moments of (z, 1) summed over rows `x` (N, P), and log p(x)."""
        return expect(state, x)

    def m_step(self, state: State, statistics: State) -> State:
        """θ' in closed form."""
        return maximize(state, statistics, self.least.double())

    def transport_statistics(
        self, state: State, new: State, made_of: State, statistics: State
    ) -> State:
        """Statistics taken at θ, in the coordinates of θ', the M-step of `made_of`."""
        return transport_statistics(state, new, made_of, statistics)

    def _theta(self) -> State:
        return {"W": self.W, "mu": self.mu, "noise": self.noise}

    def _doubles(self) -> State:
        """θ in doubles: single precision loses a factor of 1 beside one of 1,000 noises."""
        return {name: t.double() for name, t in self._theta().items()}

    def resize(self, observed: int, **like: Any) -> None:
        self.units = ColumnUnits(observed, common=self.one_noise, **like)
        with preserve_rng():  # so that `initialize` draws the same numbers in either order
            self.W = self.units.rows(torch.randn(observed, self.latent, **like))
        self.mu = self.units.location(torch.zeros(observed, **like))
        self.scale = self.units.spread(self.noises(torch.ones(observed, **like)))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["units.center"]),)


def posterior(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means (N, D) of p(z_n | x_n), and Cholesky factors (N, D, D) of its precision.

    For rows `x` (N, P), NaN where a value is missing.
    """
    W, seen = state["W"], ~x.isnan()
    noise = state["noise"].expand(len(W))
    d = torch.where(seen, x - state["mu"], 0.0)
    scaled = W / noise[:, None]  # (P, D)
    outer = (scaled[:, :, None] * W[:, None, :]).flatten(1)  # (P, D D)
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    precision = eye + (seen.to(W) @ outer).unflatten(-1, eye.shape)  # (N, D, D)
    L = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((d @ scaled)[..., None], L).squeeze(-1)
    return mean, L


def log_evidence(state: State, x: Tensor) -> Tensor:
    """log p(x_n) of the present values, in nats: (N,)."""
    return _log_evidence(state, x, *posterior(state, x))


def _log_evidence(state: State, x: Tensor, mean: Tensor, L: Tensor) -> Tensor:
    W, seen = state["W"], ~x.isnan()
    noise = state["noise"].expand(len(W))
    rest = torch.where(seen, x - state["mu"] - mean @ W.mT, 0.0)
    squares = (rest.square() / noise).sum(-1) + mean.square().sum(-1)
    log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (squares + log_det + seen.to(W) @ (2 * math.pi * noise).log())


def expect(state: State, x: Tensor) -> tuple[State, Tensor]:
    """A (P, D+1, D+1), b (P, D+1), c (P,), rows (P,) and Z (D+1, D+1); Σ_n log p(x_n)."""
    mean, L = posterior(state, x)
    d = torch.where(x.isnan(), 0.0, x - state["mu"])
    z, second = latent_regression.moments(mean, torch.cholesky_inverse(L))
    statistics = latent_regression.sums(z, second, d, (~x.isnan()).to(mean))
    return {**statistics, "Z": second.sum(0)}, _log_evidence(state, x, mean, L).sum()


def maximize(state: State, statistics: State, least: Tensor) -> State:
    """θ' from the sums of `expect`, the noise not below `least`; noises in the shape of θ."""
    W, shift, left = latent_regression.solve(statistics)
    rows, mu = statistics["rows"], state["mu"] + shift
    noise = left / rows if state["noise"].dim() else left.sum() / rows.sum()
    eta, gamma = _prior(statistics)
    return {"W": W @ gamma, "mu": mu + W @ eta, "noise": noise.clamp(min=least)}


def _prior(statistics: State) -> tuple[Tensor, Tensor]:
    """η (D,) and the Cholesky factor γ (D, D) of Γ, of the latents' expanded prior."""
    Z = statistics["Z"] / statistics["Z"][-1, -1]
    eta = Z[-1, :-1]
    return eta, torch.linalg.cholesky(Z[:-1, :-1] - eta[:, None] * eta)


def transport_statistics(state: State, new: State, made_of: State, statistics: State) -> State:
    """The sums of `expect` at θ in the coordinates of θ', the M-step of the sums `made_of`.

    There z' = γ⁻¹ (z - η) and d' = d + μ - μ'.
    """
    eta, gamma = _prior(made_of)
    D = len(eta)
    G = torch.nn.functional.pad(torch.linalg.inv(gamma), (0, 1, 0, 1))  # on (z, 1)
    shift = torch.cat([-(G[:D, :D] @ eta), torch.ones_like(eta[:1])])
    G = torch.cat([G[:, :D], shift[:, None]], -1)
    moved = latent_regression.shifted(statistics, state["mu"] - new["mu"])
    return {
        **moved,
        "A": G @ moved["A"] @ G.mT,
        "b": moved["b"] @ G.mT,
        "Z": G @ statistics["Z"] @ G.mT,
    }
