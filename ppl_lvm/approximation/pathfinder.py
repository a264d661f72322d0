"""Pathfinder: the best normal along a path of L-BFGS.

At iterate θ_l the last differences s = θ_l − θ_{l−1}, z = ∇ℓ_{l−1} − ∇ℓ_l estimate the inverse
Hessian

    H_l = diag(α) + β γ βᵀ,   β = [diag(α) Z, S],
    γ = [[0, −R⁻¹], [−R⁻ᵀ, R⁻ᵀ (E + Zᵀ diag(α) Z) R⁻¹]]

with R the upper triangle of Sᵀ Z and E its diagonal, and so q_l = N(θ_l + H_l ∇ℓ(θ_l), H_l). A few
draws estimate the ELBO of each; the best is the path's approximation. Its memory is linear in D. A
mode is not needed: along a path into a funnel the best normal comes before its end.

Reference: Zhang, Carpenter, Gelman, Vehtari (2022). Pathfinder: parallel quasi-Newton variational
inference. https://jmlr.org/papers/v23/21-0889.html
"""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from ppl_lvm.approximation.factored_normal import FactoredNormal
from ppl_lvm.approximation.normal import MAX_DENSE, Normal
from ppl_lvm.approximation.paths import HISTORY, AscentPath
from ppl_lvm.approximation.unconstrained import CHUNK, LinAlgError, LogDensity

DRAWS = 5  # of each normal's ELBO
CURVATURE = 1e-12  # sᵀz below this share of ‖z‖² is no curvature


def inverse_hessians(path: AscentPath, history: int = HISTORY) -> Iterator[FactoredNormal]:
    """The normals along a path, where the estimate is positive definite."""
    alpha = torch.ones(path.points.shape[1], dtype=path.points.dtype)
    pairs: list[tuple[Tensor, Tensor]] = []
    for l in range(1, len(path.points)):
        s = path.points[l] - path.points[l - 1]
        z = path.gradients[l - 1] - path.gradients[l]
        if s @ z > CURVATURE * (z @ z):
            alpha = _updated_diagonal(alpha, s, z)
            pairs = [*pairs, (s, z)][-history:]
        if not pairs:
            continue
        beta, gamma = _factors(alpha, pairs)
        g = path.gradients[l]
        loc = path.points[l] + alpha * g + beta @ (gamma @ (beta.T @ g))
        normal = FactoredNormal.of_inverse_hessian(loc, alpha, beta, gamma)
        if normal is not None:
            yield normal


def _updated_diagonal(alpha: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """α of the next iterate (Gilbert, Lemaréchal 1989), as Pathfinder has it."""
    a = (z.square() * alpha).sum()
    b = s @ z
    c = (s.square() / alpha).sum()
    return 1 / (a / (b * alpha) + z.square() / b - a * s.square() / (b * c * alpha.square()))


def _factors(alpha: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """β (D, 2J) and γ (2J, 2J)."""
    S, Z = (torch.stack(part, 1) for part in zip(*pairs, strict=True))
    cross = S.T @ Z
    inverse = torch.linalg.inv(cross.triu())
    scaled = alpha.unsqueeze(1) * Z
    corner = inverse.T @ (cross.diagonal().diag() + Z.T @ scaled) @ inverse
    gamma = torch.cat(
        [
            torch.cat([torch.zeros_like(inverse), -inverse], 1),
            torch.cat([-inverse.T, corner], 1),
        ]
    )
    return torch.cat([scaled, S], 1), gamma


def pathfinder(
    target: LogDensity,
    path: AscentPath,
    generator: torch.Generator,
    *,
    draws: int = DRAWS,
) -> tuple[Normal, float] | None:
    """The normal of largest ELBO along a path, and its ELBO in nats; None if there is no normal."""
    best: tuple[FactoredNormal, float] | None = None
    along = inverse_hessians(path)
    while normals := list(islice(along, CHUNK // draws)):
        samples = [normal.sample(draws, generator) for normal in normals]
        log_p, _ = target(torch.cat(samples))
        log_q = torch.cat([normal.log_prob(u) for normal, u in zip(normals, samples, strict=True)])
        elbos = (log_p - log_q).reshape(-1, draws).mean(1)
        elbos = torch.where(elbos.isfinite(), elbos, -torch.inf)
        k, elbo = int(elbos.argmax()), float(elbos.max())
        if elbo > (best[1] if best else -torch.inf):
            best = normals[k], elbo
    if best is None:
        return None
    try:
        return (best[0].dense() if target.dim <= MAX_DENSE else best[0]), best[1]
    except LinAlgError:  # by rounding
        return None
