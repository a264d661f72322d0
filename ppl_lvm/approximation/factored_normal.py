"""Normals with scales and a few directions.

    Σ = S (I + Q (diag(e²) − I) Qᵀ) S,    S = diag(scale),    Qᵀ Q = I

in memory D (r + 2). A direction of Q is stretched (e > 1: coordinates that vary together) or shrunk
(e < 1: a combination that the data determine). With A = S (I + Q (diag(e) − I) Qᵀ), A Aᵀ = Σ.

Scores match a normal: with the covariances C and Γ of vectors u and their scores g = ∇ℓ(u), the
divergence E‖Σ g + (u − μ)‖², in the coordinates of Σ, is least for

    Σ Γ Σ = C,    μ = ū + Σ ḡ,

which is batch and match in the limit λ → ∞. For a normal target this is exact whatever the u are.
`matched` solves it in the class above: among the leading directions of the u and of their scores by
small matrices, then by coordinates, scale² ∝ sd(u) / sd(g) of what the directions leave, in turns.

References:
    Modi, Cai, Saul (2024). Batch, match, and patch: low-rank approximations for score-based
    variational inference. https://arxiv.org/abs/2410.22292 (a diagonal and a low rank)
    Seyboldt, Carlson, Carpenter (2026). Preconditioning Hamiltonian Monte Carlo by minimizing
    Fisher divergence. (leading directions of draws and of scores)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_lvm.approximation.normal import DenseNormal, Normal

RANK = 64  # r at most
SWEEPS = 2  # of scales
FLAT = 1e-12  # share of the largest eigenvalue, below which a direction has no spread


@dataclass(frozen=True)
class FactoredNormal(Normal):
    """See the module.

    Attributes:
        loc, scale: (D,).
        basis: Q (D, r).
        stretch: e (r,).
    """

    loc: Tensor
    scale: Tensor
    basis: Tensor
    stretch: Tensor

    @classmethod
    def diagonal(cls, loc: Tensor, scale: Tensor) -> "FactoredNormal":
        """The normal without directions."""
        return cls(loc, scale, loc.new_zeros(len(loc), 0), loc.new_zeros(0))

    @classmethod
    def of_inverse_hessian(
        cls, loc: Tensor, diagonal: Tensor, factors: Tensor, middle: Tensor
    ) -> "FactoredNormal | None":
        """Σ = diag(α) + β γ βᵀ with α (D,), β (D, m), γ (m, m); None if it is not positive."""
        scale = diagonal.sqrt()
        Q, R = torch.linalg.qr(factors / scale.unsqueeze(1))
        eigenvalues, vectors = torch.linalg.eigh(R @ middle @ R.T)
        square = 1 + eigenvalues
        if not (scale > 0).all() or not (square > 0).all():
            return None
        return cls(loc, scale, Q @ vectors, square.sqrt())

    @property
    def sd(self) -> Tensor:
        change = (self.basis.square() * (self.stretch.square() - 1)).sum(1)
        return self.scale * (1 + change).clamp(min=0).sqrt()

    @property
    def log_det(self) -> Tensor:
        return self.scale.log().sum() + self.stretch.log().sum()

    def stretched(self, v: Tensor) -> Tensor:
        return self._along(v, self.stretch - 1) * self.scale

    def pulled_back(self, gradient: Tensor) -> Tensor:
        return self._along(gradient * self.scale, self.stretch - 1)

    def standardized(self, u: Tensor) -> Tensor:
        return self._along((u - self.loc) / self.scale, 1 / self.stretch - 1)

    def _along(self, v: Tensor, change: Tensor) -> Tensor:
        """(I + Q diag(change) Qᵀ) v for rows."""
        return v + (v @ self.basis * change) @ self.basis.T

    def dense(self) -> DenseNormal:
        """The same normal with all covariances."""
        rows = self.stretched(torch.eye(self.dim, dtype=self.loc.dtype))  # Aᵀ
        return DenseNormal.of_covariance(self.loc, rows.T @ rows)

    def rescaled(self, loc: Tensor, sd: Tensor) -> "FactoredNormal":
        """The normal with this mean and these standard deviations, and the same directions."""
        return FactoredNormal(loc, self.scale * sd / self.sd, self.basis, self.stretch)


def matched(
    q: FactoredNormal, u: Tensor, scores: Tensor, *, rank: int = RANK, sweeps: int = SWEEPS
) -> FactoredNormal | None:
    """The normal whose scores match those (S, D) of a target at vectors u (S, D); see the module.

    None where no finite normal matches.

    Args:
        q: is improved; all is computed in coordinates in which it is a standard normal.
        rank: of the directions at most.
        sweeps: times that the scales are changed, by what the directions leave.
    """
    for sweep in range(sweeps + 1):
        z, g = q.standardized(u), q.pulled_back(scores)
        z_mean, g_mean = z.mean(0), g.mean(0)
        basis, square = _directions(z - z_mean, g - g_mean, min(rank, len(u) // 4))
        step = z_mean + g_mean + (g_mean @ basis * (square - 1)) @ basis.T  # z̄ + Σ ḡ
        loc = q.loc + q.stretched(step.unsqueeze(0))[0]
        scale, product = q.scale, _product(q, basis, square, rank)
        if sweep < sweeps:
            rough = FactoredNormal(q.loc, scale, *product)
            left = rough.standardized(u).std(0) / rough.pulled_back(scores).std(0)
            loc, scale = q.loc, scale * left.sqrt()
        q = FactoredNormal(loc, scale, *product)
        if not (q.loc.isfinite().all() and q.log_det.isfinite()):
            return None
    return q


def _product(q: FactoredNormal, basis: Tensor, square: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Q and e of (I + Q E Qᵀ)(I + B diag(square − 1) Bᵀ)(I + Q E Qᵀ), the leading ones."""
    P, _ = torch.linalg.qr(torch.cat([q.basis, basis], 1))
    old, turn = P.T @ q.basis, P.T @ basis
    half = torch.eye(P.shape[1], dtype=P.dtype) + (old * (q.stretch - 1)) @ old.T
    middle = torch.eye(P.shape[1], dtype=P.dtype) + (turn * (square - 1)) @ turn.T
    stretch, turned = torch.linalg.eigh(half @ middle @ half)
    stretch = stretch.clamp(min=FLAT * float(stretch[-1]))
    chosen = stretch.log().abs().topk(min(rank, len(stretch))).indices
    return P @ turned[:, chosen], stretch[chosen].sqrt()


def _directions(z: Tensor, g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (D, r) and squares (r,) of Σ Γ Σ = C among the leading directions of draws and scores."""
    P, _ = torch.linalg.qr(torch.cat([_leading(z, rank), _leading(g, rank)], 1))
    C, G = ((part @ P).T @ (part @ P) / len(part) for part in (z, g))
    roots, vectors = torch.linalg.eigh(G)
    roots = roots.clamp(min=FLAT * float(roots[-1])).sqrt()
    half, inverse = ((vectors * power) @ vectors.T for power in (roots, 1 / roots))
    squares, vectors = torch.linalg.eigh(half @ C @ half)
    squares = squares.clamp(min=FLAT * float(squares[-1]))
    sigma = inverse @ (vectors * squares.sqrt()) @ vectors.T @ inverse
    square, turned = torch.linalg.eigh((sigma + sigma.T) / 2)
    square = square.clamp(min=FLAT * float(square[-1]))
    chosen = square.log().abs().topk(min(rank, len(square))).indices
    return P @ turned[:, chosen], square[chosen]


def _leading(x: Tensor, rank: int) -> Tensor:
    """Right singular vectors (D, r) of x (S, D), by its Gram matrix (S, S)."""
    values, vectors = torch.linalg.eigh(x @ x.T)
    leading = values[-rank:].clamp(min=FLAT * float(values[-1]))
    return (x.T @ vectors[:, -rank:]) / leading.sqrt()
