"""Linear Gaussian state-space model.

    z_n0 ~ N(0, I)                                          before the first step
    z_nt ~ N(A z_n,t-1, diag q²)            latent    (N, T, D), marginalized
    x_nt ~ N(C z_nt + μ, diag r)            observed  (N, T, P),  r = s² + floor

A, C, μ, q and s are parameters, estimated by maximum likelihood: the bound is log p(x) itself, and
the guide is empty. Expectation-maximization (`kalman`) needs no step size. The program marginalizes
the chain by `pyro.distributions.GaussianHMM` in log₂ T rounds; `log_evidence` and `smooth` are
recursions of T steps.

A missing value is NaN and is left out of the likelihood, exactly: its row of C becomes zero, its
noise 1, and the density of the 0 that replaces it is divided out. A short sequence is padded with
NaN at its end.

Reference:
    Särkkä, García-Fernández (2021). Temporal parallelization of Bayesian smoothers.
    https://arxiv.org/abs/1905.13002
"""

import math
from typing import Any

import pyro
import torch
from pyro.distributions import GaussianHMM, MultivariateNormal, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.examples import example_sequences
from ppl_lvm.models.parts.row_checks import mean_imputed
from ppl_lvm.models.parts.state_space import kalman
from ppl_lvm.models.parts.state_space.sequences import (
    as_sequences,
    check_sequences,
    check_several_steps,
    seen_steps,
)
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.units import ColumnUnits

# Expectation-maximization cannot change a state without process noise.
_LEAST_DRIFT = 1e-8

State = dict[str, Tensor]


class LinearStateSpace(LazilySized, PyroModule):
    """D linear Gaussian states of sequences of P columns, by maximum likelihood.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        floor: smallest variance of the observation's noise, as a share of that of its column.
    """

    example_batch = staticmethod(example_sequences)

    units: ColumnUnits
    A: Tensor  # (D, D)
    C: Tensor  # (P, D)
    mu: Tensor  # μ (P,)
    drift: Tensor  # q (D,)
    scale: Tensor  # s (P,)

    def __init__(
        self, latent: Count = 2, observed: Count | None = None, floor: Positive = 1e-6
    ) -> None:
        super().__init__()
        self.latent = latent
        self.floor = floor
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Sequences `x` (N, T, P), or (N, T) if P = 1; NaN where a value is missing."""
        x = self._sequences(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self._chain(~x.isnan()), obs=x.nan_to_num(0.0))

    @property
    def noise(self) -> Tensor:
        """r (P,)."""
        return self.scale**2 + self.least

    @property
    def least(self) -> Tensor:
        """The smallest noises: floor times the squared units, (P,)."""
        return self.floor * self.units.variance

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) by Kalman's filter, in nats: (N,)."""
        x = self._sequences(x)
        return kalman.filtered(self._theta(x), x).log_p

    def smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(z_nt | x_n) = N(m, V): m (N, T, D), V (N, T, D, D)."""
        x = self._sequences(x)
        theta = self._theta(x)
        known = kalman.smoothed(theta, kalman.filtered(theta, x))
        return known.means[:, 1:], known.covariances[:, 1:]

    def initialize(self, x: Tensor) -> None:
        """Start from the leading principal components of all steps, with random persistence.

        Raises:
            ValueError: for sequences of one step, constant data, or a column without a value.
        """
        x = self._sequences(x)
        check_several_steps(x, "LinearStateSpace")
        self.units.set_from(x)
        rows = self.units.standardize(mean_imputed(seen_steps(x)).double())
        mu = rows.mean(0)
        values, vectors = torch.linalg.eigh(torch.atleast_2d((rows - mu).mT.cov(correction=0)))
        if not values[-1] > 0:
            raise ValueError(
                f"All {len(rows)} steps are the same: there is no variance to model. Give other "
                "data."
            )
        D = min(self.latent, len(mu))
        like: dict[str, Any] = {"dtype": self.mu.dtype, "device": x.device}
        keeps = 0.5 + 0.45 * torch.rand(self.latent).to(**like)
        C = 0.1 * values.mean().sqrt() * torch.randn(len(mu), self.latent).to(values)
        C[:, :D] = vectors[:, -D:] * values[-D:].clamp(min=0).sqrt()
        unit = self.units.scale.double()
        self.mu, self.C = self.units.restore(mu).to(**like), (unit[:, None] * C).to(**like)
        with torch.no_grad():
            self.A.copy_(keeps.diag())
        self.drift = (1 - keeps.square()).sqrt()
        share = 0.5 * (rows - mu).square().mean(0).clamp(min=2 * self.floor)
        self.scale = (unit * (share - self.floor).clamp(min=self.floor).sqrt()).to(**like)

    def em_state(self) -> State:
        """θ of expectation-maximization (`ppl_lvm.fitting.em`), as `kalman` describes it."""
        return {name: t.detach().double() for name, t in self._theta().items()}

    def set_em_state(self, state: State) -> None:
        """Set the parameters to θ."""
        dtype = self.mu.dtype
        with torch.no_grad():
            self.A.copy_(state["A"])
        self.C, self.mu = state["C"].to(dtype), state["mu"].to(dtype)
        self.drift = state["drift"].sqrt().to(dtype)
        tiny = torch.finfo(dtype).tiny  # a scale of 0 has no logarithm
        self.scale = (state["noise"] - self.least).clamp(min=tiny).sqrt().to(dtype)

    def e_step(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """Moments of neighboring states summed over sequences `x`, and log p(x)."""
        x = self._sequences(x)
        return kalman.expect(state, x)

    def m_step(self, state: State, statistics: State) -> State:
        """θ' in closed form."""
        return kalman.maximize(state, statistics, self.least.double(), _LEAST_DRIFT)

    def transport_statistics(
        self, state: State, new: State, made_of: State, statistics: State
    ) -> State:
        """Statistics taken at θ, in the coordinates of θ', the M-step of `made_of`."""
        return kalman.transport_statistics(state, new, made_of, statistics)

    def _theta(self, x: Tensor | None = None) -> State:
        """θ, in the higher precision of the parameters and `x`."""
        theta = {"A": self.A, "C": self.C, "mu": self.mu}
        theta |= {"drift": self.drift.square(), "noise": self.noise}
        like = self.mu.dtype if x is None else torch.promote_types(self.mu.dtype, x.dtype)
        return {name: t.to(like) for name, t in theta.items()}

    def _chain(self, seen: Tensor) -> Any:
        """All T steps as one distribution; `seen` (N, T, P) marks the values that are present."""
        D, zeros = self.latent, self.drift.new_zeros(self.latent)
        eye = torch.eye(D, dtype=zeros.dtype, device=zeros.device)
        C = (self.C * seen.unsqueeze(-1)).mT  # (N, T, D, P)
        noise = torch.where(seen, self.noise, 1.0)
        return _MaskedHMM(
            MultivariateNormal(zeros, scale_tril=eye),
            self.A.mT,  # Pyro's states are rows
            Normal(zeros, self.drift).to_event(1),
            C,
            Normal(self.mu * seen, noise.sqrt()).to_event(1),
            duration=seen.shape[1],
            missing=(~seen).sum((-1, -2)),
        )

    def _sequences(self, x: Tensor) -> Tensor:
        """`x` as sequences (N, T, P), checked."""
        self.infer_sizes(x)
        return as_sequences(x)

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        return (check_sequences(batch[0], self.observed, name),)

    def resize(self, observed: int, **like: Any) -> None:
        D = self.latent
        self.units = ColumnUnits(observed, **like)
        self.A = nn.Parameter(0.9 * torch.eye(D, **like))
        with preserve_rng():  # so that `initialize` draws the same numbers in either order
            self.C = self.units.rows(torch.randn(observed, D, **like))
        self.mu = self.units.location(torch.zeros(observed, **like))
        self.drift = PyroParam(torch.full((D,), 0.5, **like), constraints.positive)
        self.scale = self.units.spread(torch.ones(observed, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["units.center"]),)


_PADDING = 0.5 * math.log(2 * math.pi)  # of one missing value: -log N(0; 0, 1)


class _MaskedHMM(GaussianHMM):
    """A GaussianHMM without the density of missing values, which are 0 under N(0, 1)."""

    def __init__(self, *args: Any, missing: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._missing = missing  # (N,)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_MaskedHMM":
        """The same distribution over a larger batch."""
        new = super().expand(batch_shape, self._get_checked_instance(_MaskedHMM, _instance))
        new._missing = self._missing
        result: _MaskedHMM = new
        return result

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the values that are present."""
        result: Tensor = super().log_prob(value) + _PADDING * self._missing
        return result
