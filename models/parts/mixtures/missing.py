"""E-step of a Gaussian mixture with missing values.

The columns O of row n are present (NaN elsewhere); the others are marginalized. With Σ = L Lᵀ and
x = μ + L u the component's u ~ N(0, I) is observed through the rows O of L alone,

    x_O - μ_O = L_O u,    F Fᵀ = L_O L_Oᵀ,    V = F⁻¹ L_O,    w = F⁻¹ (x_O - μ_O),
    log N(x_O; μ_O, Σ_OO) = -½ wᵀ w - log det F - ½ |O| log 2π,
    E[u | x_O] = Vᵀ w,    cov[u | x_O] = I - Vᵀ V,

and the sums of `em.expect` take the expectations of u and u uᵀ in place of their values. Its M-step
is unchanged. Rows with the same missing columns share F and V.

Reference:
    Ghahramani, Jordan (1994). Supervised learning from incomplete data via an EM approach.
"""

import math
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, constraints
from torch import Tensor

from ppl_lvm.models.parts.cholesky import cholesky

State = dict[str, Tensor]

# Entries of the largest tensor, (rows, K, P, P).
BLOCK_NUMBERS = 2**20


class _RealOrMissing(constraints.Constraint):
    """Real vectors, or NaN where a value is missing."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """True for vectors without infinite values: (…)."""
        return (~value.isinf()).all(-1)


class MarginalNormal(MultivariateNormal):
    """N(μ, L Lᵀ) whose density marginalizes the missing values (NaN) of its argument.

    The density needs memory for P² numbers per row and component.
    """

    support = _RealOrMissing()
    _validate_args = False

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the present values, in nats."""
        present = ~value.isnan()
        d = torch.where(present, value - self.loc, 0.0)
        F, _ = _factors(self.scale_tril, present)
        return _log_density(F, d, present)[0]


def expect(state: State, L: Tensor, x: Tensor) -> tuple[State, Tensor]:
    """R (K,), m (K, P), S (K, P, P) and Σ_n log p(x_n) over rows `x` (N, P) with NaN.

    `L` (K, P, P), or (1, P, P) for one matrix, is the Cholesky factor of Σ.
    """
    means = state["means"]
    K, P = means.shape
    log_weights = state["weights"].log()
    _, pattern = x.isnan().unique(dim=0, return_inverse=True)
    total: dict[str, Any] = {}
    log_likelihood: Any = 0.0
    for block in x[pattern.argsort()].split(max(1, BLOCK_NUMBERS // (K * P * P))):
        patterns, of = (~block.isnan()).unique(dim=0, return_inverse=True)  # (G, P), (B,)
        F, V = _factors(L, patterns[:, None])  # (G, K, P, P)
        present = patterns[of][:, None]  # (B, 1, P)
        d = torch.where(present, block[:, None] - means, 0.0)  # (B, K, P)
        log_density, w = _log_density(F[of], d, present)
        log_joint = log_weights + log_density  # (B, K)
        log_p = log_joint.logsumexp(-1)
        r = (log_joint - log_p[:, None]).exp()
        u = (V.mT[of] @ w[..., None]).squeeze(-1)  # E[u] (B, K, P)
        weight = r.new_zeros(len(patterns), K).index_add(0, of, r)  # (G, K)
        spread = _spread(V)  # (G, K or 1, P, P)
        sums = {
            "rows": r.sum(0),
            "shift": (r[..., None] * u).sum(0),
            "scatter": torch.einsum("bk,bkp,bkq->kpq", r, u, u)
            + (weight[..., None, None] * spread).sum(0),
        }
        log_likelihood = log_likelihood + log_p.sum()
        total = {name: total.get(name, 0.0) + t for name, t in sums.items()}
    return total, log_likelihood


def impute(
    r: Tensor, means: Tensor, L: Tensor, x: Tensor, num_samples: int | None = None
) -> Tensor:
    """Rows `x` (N, P) with E[x_p | x_O] in place of NaN; or S draws of p(x | x_O), (S, N, P).

    A draw takes a component k by responsibilities `r` (N, K), and with e ~ N(0, I)

        u = e + Vᵀ (w - V e),    x = μ_k + L_k u,

    where V Vᵀ = I on the present columns, so that cov u = I - Vᵀ V. Computed in doubles.
    """
    K, P = means.shape
    r, means, L = r.double(), means.double(), L.double().expand(K, P, P)
    parts = []
    for rows in torch.arange(len(x)).split(max(1, BLOCK_NUMBERS // (K * P * P))):
        block = x[rows].double()
        patterns, of = (~block.isnan()).unique(dim=0, return_inverse=True)  # (G, P), (B,)
        F, V = (t[of] for t in _factors(L, patterns[:, None]))  # (B, K, P, P)
        present = patterns[of][:, None]
        _, w = _log_density(F, torch.where(present, block[:, None] - means, 0.0), present)
        if num_samples is None:
            u = V.mT @ w[..., None]
            value = torch.einsum("bk,bkp->bp", r[rows], means + (L @ u).squeeze(-1))
        else:
            value = torch.stack([_draw(r[rows], means, L, V, w) for _ in range(num_samples)])
        parts.append(torch.where(block.isnan(), value, block))
    return torch.cat(parts, -2).to(x)


def _draw(r: Tensor, means: Tensor, L: Tensor, V: Tensor, w: Tensor) -> Tensor:
    """One draw of the complete rows, (B, P)."""
    k, row = torch.multinomial(r, 1).squeeze(-1), torch.arange(len(r))
    V, e = V[row, k], torch.randn_like(w[:, 0])[..., None]
    u = e + V.mT @ (w[row, k][..., None] - V @ e)
    return means[k] + (L[k] @ u).squeeze(-1)


def expect_diagonal(state: State, scale: Tensor, x: Tensor) -> tuple[State, Tensor]:
    """The same for standard deviations `scale` (K, P), S being diagonals (K, P)."""
    present = (~x.isnan())[:, None]  # (N, 1, P)
    u = torch.where(present, (x[:, None] - state["means"]) / scale, 0.0)  # (N, K, P)
    constant = scale.log() + 0.5 * math.log(2 * math.pi)
    log_joint = state["weights"].log() - (0.5 * u.square() + present * constant).sum(-1)
    log_p = log_joint.logsumexp(-1)
    r = (log_joint - log_p[:, None]).exp()[..., None]  # (N, K, 1)
    second = torch.where(present, u.square(), 1.0)
    sums = {"rows": r.sum((0, 2)), "shift": (r * u).sum(0), "scatter": (r * second).sum(0)}
    return sums, log_p.sum()


def _factors(L: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """F and V (…, P, P) of columns `seen` (…, P), 1 and 0 where a column is missing.

    Computed in doubles: squares of L in single precision lose a narrow direction.
    """
    LO = torch.where(present[..., None], L.double(), 0.0)
    F = cholesky(LO @ LO.mT + torch.diag_embed((~present).to(LO)))
    return F.to(L), torch.linalg.solve_triangular(F, LO, upper=False).to(L)


def _spread(V: Tensor) -> Tensor:
    """cov[u | x_O] = I - Vᵀ V."""
    return torch.eye(V.shape[-1], dtype=V.dtype, device=V.device) - V.mT @ V


def _log_density(F: Tensor, d: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (…) and w (…, P) of residuals `d` (…, P), 0 where a column is missing."""
    w = torch.linalg.solve_triangular(F, d[..., None], upper=False).squeeze(-1)
    log_det = F.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * math.log(2 * math.pi) * present.sum(-1)
    return -0.5 * w.square().sum(-1) - log_det - constant, w
