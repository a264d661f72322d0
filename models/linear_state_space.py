"""Linear state-space model: a state that moves linearly, seen linearly, all noise Gaussian.

    z_n0 ~ N(0, I)                                          before the first step
    z_nt ~ N(A z_n,t-1, diag q²)            latent    (N, T, D), integrated out
    x_nt ~ N(C z_nt + μ, diag r)            observed  (N, T, P),  r = s² + floor

A, C, μ, q and s are parameters, to be found by maximum likelihood, so that the bound is log p(x)
itself; the guide is empty. The program integrates the chain out by `pyro.distributions.GaussianHMM`
in log₂ T rounds; `log_evidence` and `smooth` walk along it (Kalman, and Rauch, Tung, Striebel).

A missing value is NaN and is left out of the likelihood, exactly: its row of C becomes zero, its
noise 1, and the density of the 0 that stands in its place is divided out. A short sequence is
filled up with NaN at its end.

References:
    Kalman (1960). A new approach to linear filtering and prediction problems.
    Rauch, Tung, Striebel (1965). Maximum likelihood estimates of linear dynamic systems.
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

from ppl_lvm.models.rows import filled


class LinearStateSpace(PyroModule):
    """D moving causes behind sequences of P columns, by maximum likelihood.

    Args:
        latent: D.
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        floor: the least variance of the observation's noise, in squared units of the data.
    """

    A: Tensor  # (D, D)
    C: Tensor  # (P, D)
    mu: Tensor  # μ (P,)
    drift: Tensor  # q (D,)
    scale: Tensor  # s (P,)

    def __init__(self, latent: int = 2, observed: int | None = None, floor: float = 1e-6) -> None:
        super().__init__()
        if latent < 1 or not floor > 0:
            raise ValueError(
                f"LinearStateSpace needs latent >= 1 and floor > 0; got latent={latent}, "
                f"floor={floor}."
            )
        self.latent = latent
        self.floor = floor
        self.observed: int | None = None
        if observed is not None:
            self._resize(observed)

    def forward(self, x: Tensor) -> None:
        """Sequences `x` (N, T, P), or (N, T) if P = 1; NaN where there is none."""
        self._meet(x)
        x = x if x.dim() == 3 else x.unsqueeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self._chain(~x.isnan()), obs=x.nan_to_num(0.0))

    @property
    def noise(self) -> Tensor:
        """r (P,)."""
        return self.scale**2 + self.floor

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) by Kalman's filter, in nats: (N,)."""
        return self._filter(x)[0]

    def smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(z_nt | x_n) = N(m, V): m (N, T, D), V (N, T, D, D)."""
        _, means, covariances, predicted = self._filter(x)
        A, Q = self.A, self.drift.square().diag()
        m, V = means[-1], covariances[-1]
        found = [(m, V)]
        for t in range(len(means) - 2, -1, -1):
            ahead = A @ covariances[t] @ A.mT + Q
            gain = torch.linalg.solve(ahead, A @ covariances[t]).mT  # (N, D, D)
            m = means[t] + (gain @ (m - predicted[t + 1]).unsqueeze(-1)).squeeze(-1)
            V = covariances[t] + gain @ (V - ahead) @ gain.mT
            found.append((m, V))
        found.reverse()
        return torch.stack([m for m, _ in found], 1), torch.stack([V for _, V in found], 1)

    def initialize(self, x: Tensor) -> None:
        """Start from the leading principal components of all steps, each nearly keeping its value.

        Raises:
            ValueError: for data that never change, or a column without a value.
        """
        self._meet(x)
        rows = x.detach().reshape(-1, self.mu.shape[0])
        rows = filled(rows[~rows.isnan().all(1)]).double()
        mu = rows.mean(0)
        values, vectors = torch.linalg.eigh(torch.atleast_2d((rows - mu).mT.cov(correction=0)))
        if not values[-1] > 0:
            raise ValueError(
                f"All {len(rows)} steps are the same: there is no variance to model. Give other "
                "data."
            )
        D = min(self.latent, len(mu))
        like: dict[str, Any] = {"dtype": self.mu.dtype, "device": x.device}
        with torch.no_grad():
            self.mu.copy_(mu)
            self.C[:, :D] = (vectors[:, -D:] * values[-D:].clamp(min=0).sqrt()).to(**like)
            self.A.copy_(0.9 * torch.eye(self.latent))
        self.drift = torch.full((self.latent,), math.sqrt(1 - 0.9**2), **like)
        share = 0.5 * (rows - mu).square().mean(0).clamp(min=2 * self.floor)
        self.scale = (share - self.floor).clamp(min=self.floor).sqrt().to(**like)

    def _chain(self, seen: Tensor) -> Any:
        """All T steps as one distribution; `seen` (N, T, P) says which values count."""
        D, zeros = self.latent, self.drift.new_zeros(self.latent)
        eye = torch.eye(D, dtype=zeros.dtype, device=zeros.device)
        C = (self.C * seen.unsqueeze(-1)).mT  # (N, T, D, P)
        noise = torch.where(seen, self.noise, 1.0)
        return _SeenHMM(
            MultivariateNormal(zeros, scale_tril=eye),
            self.A.mT,  # Pyro's states are rows
            Normal(zeros, self.drift).to_event(1),
            C,
            Normal(self.mu * seen, noise.sqrt()).to_event(1),
            duration=seen.shape[1],
            missing=(~seen).sum((-1, -2)),
        )

    def _filter(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """log p(x_n), then for every step the filtered means, covariances and predicted means."""
        self._meet(x)
        x = x if x.dim() == 3 else x.unsqueeze(-1)
        A, Q, eye = self.A, self.drift.square().diag(), torch.eye(self.latent).to(x)
        m, V = x.new_zeros(len(x), self.latent), eye.expand(len(x), -1, -1)
        total: Any = 0.0
        means, covariances, predicted = [], [], []
        for t in range(x.shape[1]):
            m, V = m @ A.mT, A @ V @ A.mT + Q
            predicted.append(m)
            seen = ~x[:, t].isnan()  # (N, P)
            C = self.C * seen.unsqueeze(-1)
            R = torch.where(seen, self.noise, 1.0)
            error = torch.where(seen, x[:, t] - self.mu - m @ self.C.mT, 0.0)
            S = C @ V @ C.mT + torch.diag_embed(R)
            normal = MultivariateNormal(torch.zeros_like(error), S)
            total = total + normal.log_prob(error) + _NOTHING * (~seen).sum(-1)
            gain = torch.linalg.solve(S, C @ V).mT  # (N, D, P)
            m = m + (gain @ error.unsqueeze(-1)).squeeze(-1)
            keep = eye - gain @ C  # Joseph's form stays symmetric and positive
            V = keep @ V @ keep.mT + gain @ torch.diag_embed(R) @ gain.mT
            means.append(m)
            covariances.append(V)
        return total, means, covariances, predicted

    def _meet(self, x: Tensor) -> None:
        """Take P from the data if nobody gave it; refuse data of another shape."""
        width = x.shape[2] if x.dim() == 3 else 1
        if x.dim() not in (2, 3) or (self.observed is not None and width != self.observed):
            raise ValueError(
                f"LinearStateSpace takes sequences (N, T, {self.observed or 'P'}), or (N, T) for "
                f"one column, got {tuple(x.shape)}. Save them as one .npy array, short ones "
                "filled up with NaN."
            )
        if not x.is_floating_point():
            raise ValueError(
                f"LinearStateSpace takes floating-point numbers, got {x.dtype}. Pass x.float()."
            )
        if self.observed is None:
            self._resize(width, dtype=x.dtype, device=x.device)

    def _resize(self, observed: int, **like: Any) -> None:
        self.observed = observed
        D = self.latent
        self.A = nn.Parameter(0.9 * torch.eye(D, **like))
        self.C = nn.Parameter(torch.randn(observed, D, **like))
        self.mu = nn.Parameter(torch.zeros(observed, **like))
        self.drift = PyroParam(torch.full((D,), 0.5, **like), constraints.positive)
        self.scale = PyroParam(torch.ones(observed, **like), constraints.positive)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        mu = state.get(prefix + "mu")
        if self.observed is None and mu is not None:
            self._resize(len(mu), dtype=mu.dtype, device=mu.device)
        super()._load_from_state_dict(state, prefix, *rest)


_NOTHING = 0.5 * math.log(2 * math.pi)  # what one missing value adds: -log N(0; 0, 1)


class _SeenHMM(GaussianHMM):
    """A GaussianHMM in which some values, standing as 0 under N(0, 1), do not count."""

    def __init__(self, *args: Any, missing: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._missing = missing  # (N,)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_SeenHMM":
        """The same over a larger batch."""
        new = super().expand(batch_shape, self._get_checked_instance(_SeenHMM, _instance))
        new._missing = self._missing
        found: _SeenHMM = new
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the values that are there."""
        found: Tensor = super().log_prob(value) + _NOTHING * self._missing
        return found
