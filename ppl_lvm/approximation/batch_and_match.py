"""Batch and match: a normal by matching scores.

Each iteration draws B vectors z_b from q = N(μ, Σ), with scores g_b = ∇ℓ(z_b), means z̄, ḡ and
covariances C, Γ (1/B) of both, and λ = B D / (t + 1). It minimizes the score-based divergence plus
2/λ KL(q_old ‖ q), in closed form:

    U = λ Γ + λ/(1 + λ) ḡ ḡᵀ
    V = Σ + λ C + λ/(1 + λ) (μ − z̄)(μ − z̄)ᵀ
    Σ ← 2 V (I + (I + 4 U V)^{1/2})⁻¹
    μ ← (μ + λ (Σ ḡ + z̄)) / (1 + λ)

There is no step size. A normal target is reached in one iteration in the limit λ → ∞, with B > D.
Of many values the covariance is a diagonal and a few directions (`factored_normal`).

Reference: Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei, Saul (2024). Batch and match:
black-box variational inference with a score-based divergence. https://arxiv.org/abs/2402.14758
"""

import math

import torch
from torch import Tensor

from ppl_lvm.approximation.factored_normal import SWEEPS, FactoredNormal, matched
from ppl_lvm.approximation.normal import DenseNormal, Normal
from ppl_lvm.approximation.unconstrained import LinAlgError, LogDensity

BATCH = 64
ITERATIONS = 15
FACTORED_BATCH, FACTORED_ITERATIONS = 256, 20
RESCALED = 5  # iterations that change the scales
SETTLED = 0.01  # nats between ELBOs of consecutive iterations


def batch_and_match(
    target: LogDensity,
    start: Normal,
    generator: torch.Generator,
    *,
    iterations: int = ITERATIONS,
    batch: int = BATCH,
) -> Normal:
    """The normal after so many iterations from `start`; of a factored one, see `_factored`."""
    if isinstance(start, FactoredNormal):
        return _factored(target, start, generator)
    assert isinstance(start, DenseNormal)
    q = start
    for t in range(iterations):
        z = q.sample(batch, generator)
        _, scores = target(z)
        finite = scores.isfinite().all(1)
        if finite.sum() < 2:
            continue
        weight = batch * q.dim / (t + 1)
        q = updated(q, z[finite], scores[finite], weight) or q
    return q


def _factored(
    target: LogDensity, start: FactoredNormal, generator: torch.Generator
) -> FactoredNormal:
    """The normal of largest ELBO of all iterations, in the limit λ → ∞: λ is above D there.

    They go from the start, and from its center with the coordinates' own units: where the data
    determine a few of many standardized values, the start's scales are far from those of the rest.
    """
    unit = FactoredNormal.diagonal(start.loc, torch.ones_like(start.loc))
    ends = [_iterated(target, q, generator) for q in (start, unit)]
    return max(ends, key=lambda end: end[1])[0]


def _iterated(
    target: LogDensity, q: FactoredNormal, generator: torch.Generator
) -> tuple[FactoredNormal, float]:
    """The best iterate, and its ELBO in nats."""
    best, best_elbo = q, -math.inf
    for t in range(FACTORED_ITERATIONS + 1):
        z = q.sample(FACTORED_BATCH, generator)
        values, scores = target(z)
        finite = scores.isfinite().all(1) & values.isfinite()
        elbo = float((values - q.log_prob(z)).mean()) if finite.all() else -math.inf
        settled = t > RESCALED and abs(elbo - best_elbo) < SETTLED
        if elbo > best_elbo:
            best, best_elbo = q, elbo
        if 2 * finite.sum() < len(z) or t == FACTORED_ITERATIONS or settled:
            break
        new = matched(q, z[finite], scores[finite], sweeps=SWEEPS if t < RESCALED else 0)
        if new is None:
            break
        q = new
    return best, best_elbo


def updated(q: DenseNormal, z: Tensor, scores: Tensor, weight: float) -> DenseNormal | None:
    """One iteration with λ = `weight`; None where its covariance is not positive definite.

    It is computed in coordinates in which q is a standard normal: units differ by many orders.
    """
    L = q.scale_tril
    z = torch.linalg.solve_triangular(L, (z - q.loc).T, upper=False).T
    g = scores @ L
    z_mean, g_mean = z.mean(0), g.mean(0)
    ratio = weight / (1 + weight)
    eye = torch.eye(q.dim, dtype=z.dtype)
    U = weight * _second_moment(g - g_mean) + ratio * torch.outer(g_mean, g_mean)
    V = eye + weight * _second_moment(z - z_mean) + ratio * torch.outer(z_mean, z_mean)
    # 2 V (I + (I + 4UV)^½)⁻¹ = 2 R (I + (I + 4 Rᵀ U R)^½)⁻¹ Rᵀ with V = R Rᵀ: symmetric matrices.
    try:
        R = torch.linalg.cholesky(V)
        eigenvalues, vectors = torch.linalg.eigh(R.T @ U @ R)
        half = R @ vectors * (2 / (1 + (1 + 4 * eigenvalues.clamp(min=0)).sqrt())).sqrt()
        covariance = half @ half.T
        loc = ratio * (covariance @ g_mean + z_mean)
        new = DenseNormal.of_covariance(q.loc + L @ loc, L @ covariance @ L.T)
    except LinAlgError:
        return None
    return new if new.loc.isfinite().all() and new.scale_tril.isfinite().all() else None


def _second_moment(x: Tensor) -> Tensor:
    return x.T @ x / len(x)
