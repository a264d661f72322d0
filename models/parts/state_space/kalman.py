"""Kalman filter, RTS smoother and EM steps.

    z_0 ~ N(0, I),    z_t ~ N(A z_{t-1}, Q),    x_t ~ N(C z_t + μ, R),    Q and R diagonal,

with the columns of x_t that are present. The filter goes forward (Kalman), the smoother backward
from its end (Rauch, Tung, Striebel), with P_t = A V_t|t Aᵀ + Q the predicted covariance of z_{t+1}:

    J_t = V_t|t Aᵀ P_t⁻¹,    m_t = m_t|t + J_t (m_{t+1} - A m_t|t),
    V_t = V_t|t + J_t (V_{t+1} - P_t) J_tᵀ,    cov(z_{t+1}, z_t | x) = V_{t+1} J_tᵀ.

The E-step sums over the steps of all sequences

    before = Σ E[z_{t-1} z_{t-1}ᵀ],    across = Σ E[z_t z_{t-1}ᵀ],    after = Σ E[z_t z_tᵀ],

over sequences first = Σ E[z_0 z_0ᵀ], their numbers, and the sums of `latent_regression` for the
columns of x_t given z_t. A chain ends at its last observed step, as in `baum_welch`.

The model is equivalent to one with z_0 ~ N(0, Γ) and any Q: there are always coordinates in which
Γ = I and Q is diagonal. Only z_0 determines the coordinates, so weakly that plain EM is very slow.
So the M-step is that of the larger model (parameter expansion),

    A = across before⁻¹,    Q = (after - A acrossᵀ) / steps,    Γ = first / sequences,

and the regression, transformed back by z = M z' with M = γ U, where Γ = γ γᵀ and
γ⁻¹ Q γ⁻ᵀ = U Q' Uᵀ: A' = M⁻¹ A M, C' = C M, Q'. That leaves p(x) unchanged.

θ is {"A": (D, D), "C": (P, D), "mu": (P,), "drift": Q (D,), "noise": R (P,)}. Nothing branches on
its values, so `torch.vmap` can batch restarts.

References:
    Kalman (1960). A new approach to linear filtering and prediction problems.
    Rauch, Tung, Striebel (1965). Maximum likelihood estimates of linear dynamic systems.
    Shumway, Stoffer (1982). An approach to time series smoothing and forecasting using the EM
    algorithm.
    Ghahramani, Hinton (1996). Parameter estimation for linear dynamical systems.
    Liu, Rubin, Wu (1998). Parameter expansion to accelerate EM: the PX-EM algorithm.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_lvm.models.parts.factors import latent_regression
from ppl_lvm.models.parts.state_space.sequences import active_steps

# Entries of the largest tensor of a block of sequences.
BLOCK_NUMBERS = 2**21

State = dict[str, Tensor]


class Filtered(NamedTuple):
    """Filtered distributions of z_0, …, z_T.

    Attributes:
        log_p: log p(x_n) (N,).
        means, covariances: of z_t given x_1, …, x_t: (N, T + 1, D), (N, T + 1, D, D).
    """

    log_p: Tensor
    means: Tensor
    covariances: Tensor


class Smoothed(NamedTuple):
    """Smoothed distributions of z_0, …, z_T, given the whole sequence.

    Attributes:
        means, covariances: of z_t: (N, T + 1, D), (N, T + 1, D, D).
        across: cov(z_t, z_{t-1}), t = 1, …, T: (N, T, D, D).
    """

    means: Tensor
    covariances: Tensor
    across: Tensor


def filtered(state: State, x: Tensor) -> Filtered:
    """Kalman filter over sequences `x` (N, T, P), NaN where a value is missing."""
    A, Q, noise = state["A"], state["drift"].diag(), state["noise"]
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    m, V = A.new_zeros(len(x), len(A)), eye.expand(len(x), -1, -1)
    means, covariances = [m], [V]
    log_p = m.new_zeros(len(x))
    for t in range(x.shape[1]):
        m, V = m @ A.mT, A @ V @ A.mT + Q
        present = ~x[:, t].isnan()  # (N, P)
        C = state["C"] * present.unsqueeze(-1)
        R = torch.where(present, noise, 1.0).diag_embed()
        error = torch.where(present, x[:, t] - state["mu"] - m @ state["C"].mT, 0.0).unsqueeze(-1)
        L = torch.linalg.cholesky(C @ V @ C.mT + R)  # 1 where a value is missing
        w = torch.linalg.solve_triangular(L, error, upper=False).squeeze(-1)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * math.log(2 * math.pi) * present.sum(-1)
        log_p = log_p - 0.5 * w.square().sum(-1) - log_det - constant
        gain = torch.cholesky_solve(C @ V, L).mT  # (N, D, P)
        m = m + (gain @ error).squeeze(-1)
        keep = eye - gain @ C  # Joseph's form stays symmetric and positive
        V = keep @ V @ keep.mT + gain @ R @ gain.mT
        means.append(m)
        covariances.append(V)
    return Filtered(log_p, torch.stack(means, 1), torch.stack(covariances, 1))


def smoothed(state: State, known: Filtered) -> Smoothed:
    """Rauch-Tung-Striebel smoother from the filtered distributions."""
    A, Q = state["A"], state["drift"].diag()
    m, V = known.means[:, -1], known.covariances[:, -1]
    means, covariances, across = [m], [V], []
    for t in range(known.means.shape[1] - 2, -1, -1):
        before, spread = known.means[:, t], known.covariances[:, t]
        ahead = A @ spread @ A.mT + Q
        J = torch.linalg.solve(ahead, A @ spread).mT  # (N, D, D)
        across.append(V @ J.mT)
        m = before + (J @ (m - before @ A.mT).unsqueeze(-1)).squeeze(-1)
        V = spread + J @ (V - ahead) @ J.mT
        means.append(m)
        covariances.append(V)
    return Smoothed(*(torch.stack(t[::-1], 1) for t in (means, covariances, across)))


def expect(state: State, x: Tensor) -> tuple[State, Tensor]:
    """The sums over sequences `x` (N, T, P), and Σ_n log p(x_n).

    before, across, after, first (D, D), steps, sequences (), and those of `latent_regression`.
    """
    (_, T, P), D = x.shape, len(state["A"])
    total: dict[str, Any] = {}
    log_likelihood: Any = 0.0
    for block in x.split(max(1, BLOCK_NUMBERS // ((T + 1) * max(D * D, P)))):
        known = filtered(state, block)
        log_likelihood = log_likelihood + known.log_p.sum()
        sums = _sums(state, block, smoothed(state, known))
        total = {name: total.get(name, 0.0) + t for name, t in sums.items()}
    return total, log_likelihood


def _sums(state: State, x: Tensor, known: Smoothed) -> State:
    m, active = known.means, active_steps(x).to(known.means)  # (N, T + 1, D), (N, T)
    z, second = latent_regression.moments(m, known.covariances)
    squares = second[..., :-1, :-1]  # E[z zᵀ] (N, T + 1, D, D)
    products = known.across + m[:, 1:, :, None] * m[:, :-1, None, :]
    d = torch.where(x.isnan(), 0.0, x - state["mu"])
    flat = [t.flatten(0, 1) for t in (z[:, 1:], second[:, 1:], d, (~x.isnan()).to(m))]
    return {
        "before": torch.einsum("nt,ntij->ij", active, squares[:, :-1]),
        "across": torch.einsum("nt,ntij->ij", active, products),
        "after": torch.einsum("nt,ntij->ij", active, squares[:, 1:]),
        "first": torch.einsum("n,nij->ij", active[:, 0], squares[:, 0]),
        "steps": active.sum(),
        "sequences": active[:, 0].sum(),
        **latent_regression.sums(*flat),
    }


def maximize(state: State, statistics: State, least: Tensor, least_drift: float) -> State:
    """θ' from the sums of `expect`; no variance of R is below `least`, none of Q `least_drift`."""
    A, drift, M = _moves(statistics)
    C, shift, left = latent_regression.solve(statistics)
    return {
        "A": torch.linalg.solve(M, A @ M),
        "C": C @ M,
        "mu": state["mu"] + shift,
        "drift": drift.clamp(min=least_drift),
        "noise": (left / statistics["rows"]).clamp(min=least),
    }


def _moves(statistics: State) -> tuple[Tensor, Tensor, Tensor]:
    """A (D, D) of the larger model; Q' (D,) and M (D, D), the change of coordinates."""
    across = statistics["across"]
    A = torch.linalg.solve(statistics["before"], across.mT).mT
    Q = (statistics["after"] - A @ across.mT) / statistics["steps"]
    gamma = torch.linalg.cholesky(statistics["first"] / statistics["sequences"])
    half = torch.linalg.solve_triangular(gamma, Q, upper=False)
    inner = torch.linalg.solve_triangular(gamma, half.mT, upper=False)
    drift, U = torch.linalg.eigh(0.5 * (inner + inner.mT))
    U = U * torch.where(U.sum(0) < 0, -1.0, 1.0)  # fix the arbitrary signs
    return A, drift, gamma @ U


def transport_statistics(state: State, new: State, made_of: State, statistics: State) -> State:
    """The sums of `expect` at θ in the coordinates of θ', the M-step of the sums `made_of`.

    There z' = M⁻¹ z and d' = d + μ - μ'.
    """
    moved = {**statistics, **latent_regression.shifted(statistics, state["mu"] - new["mu"])}
    G = torch.linalg.inv(_moves(made_of)[2])
    G_1 = torch.nn.functional.pad(G, (0, 1, 0, 1))  # on (z, 1)
    G_1 = G_1 + torch.diag(torch.nn.functional.pad(torch.zeros_like(G[0]), (0, 1), value=1.0))
    for name in ("before", "across", "after", "first"):
        moved[name] = G @ moved[name] @ G.mT
    return {**moved, "A": G_1 @ moved["A"] @ G_1.mT, "b": moved["b"] @ G_1.mT}
