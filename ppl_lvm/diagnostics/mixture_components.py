"""Mixtures: components used, overlap, label switching, stability, information criteria.

Components have no names: draws or restarts must be relabelled before anything is averaged.
`relabel` finds the permutation of each draw's components that agrees best with a pivot, from
responsibilities P (S, N, K) (soft ECR: cost −P_pivᵀ P_s, solved by the Hungarian method) or from
parameters (squared distances to the pivot's). `relabel_by_divergence` needs no pivot: it looks for
the permutations under which all draws' responsibilities lie closest to their mean. What needs no
labels is safer still: weights in sorted order, the number of components in use, and the
co-clustering of rows.

    N_k = Σ_n r_nk,   H = −1/N Σ_n Σ_k r_nk log r_nk
    AIC = 2m − 2 log p(x),   BIC = m log N − 2 log p(x),   ICL = BIC + 2 N H

with m parameters that the likelihood depends on. Criteria only compare fits of the same data.

References:
    Stephens (2000). Dealing with label switching in mixture models.
    https://doi.org/10.1111/1467-9868.00265 (algorithm 2, section 4.1)
    Papastamoulis (2016). label.switching. https://arxiv.org/abs/1503.02271 (ECR)
    Biernacki, Celeux, Govaert (2000). Assessing a mixture model for clustering with the integrated
    completed likelihood. https://doi.org/10.1109/34.865189
    Hubert, Arabie (1985). Comparing partitions. https://doi.org/10.1007/BF01908075
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike, NDArray
from pyro.distributions import constraints
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.posterior import predict
from ppl_lvm.programs.pair import ModelGuidePair

QUESTION = "Mixtures: are the components sound?"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MixtureComponents:
    """Attributes:
    responsibilities: r (N, K).
    log_likelihood: Σ_n log p(x_n), NaN where the guide has latents of its own.
    num_parameters: m that the likelihood depends on.
    degenerate: the model's own reason not to choose this fit, or None.
    """

    responsibilities: Floats
    log_likelihood: float
    num_parameters: int
    degenerate: str | None

    @property
    def sizes(self) -> Floats:
        """N_k (K,): rows each component explains."""
        return self.responsibilities.sum(0)

    @property
    def used(self) -> int:
        """Components that explain at least one row."""
        return int((self.sizes >= 1).sum())

    @property
    def entropy(self) -> float:
        """H, nats per row."""
        return float(-xlogy(self.responsibilities, self.responsibilities).sum(1).mean())

    @property
    def aic(self) -> float:
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        rows = len(self.responsibilities)
        return self.num_parameters * math.log(rows) - 2 * self.log_likelihood

    @property
    def icl(self) -> float:
        return self.bic + 2 * len(self.responsibilities) * self.entropy

    def findings(self) -> list[Finding]:
        K, N = self.responsibilities.shape[1], len(self.responsibilities)
        rows = [self._used_finding(K), self._entropy_finding(K, N)]
        if math.isfinite(self.log_likelihood):
            why = f"AIC {self.aic:.1f}, ICL {self.icl:.1f}, {self.num_parameters} parameters. "
            rows.append(
                Finding(
                    QUESTION,
                    "BIC (smaller is better)",
                    self.bic,
                    None,
                    "none: compare fits of the same data",
                    "Schwarz 1978",
                    "unknown",
                    why + "One fit's criterion means nothing alone.",
                    "Fit other numbers of components and compare.",
                )
            )
        return rows

    def _used_finding(self, K: int) -> Finding:
        verdict = "bad" if self.degenerate else "good" if self.used == K else "warning"
        return Finding(
            QUESTION,
            f"components used of {K}",
            float(self.used),
            None,
            "used: at least one row; good all, bad collapsed",
            PROJECT_DEFAULT,
            verdict,  # type: ignore[arg-type]
            self.degenerate
            or "Rows each explains: " + ", ".join(f"{n:.1f}" for n in self.sizes[:12]) + ".",
            ""
            if verdict == "good"
            else "Start again (restarts=), raise the variance floor."
            if self.degenerate
            else "Use fewer components; in a Bayesian mixture unused ones do no harm.",
        )

    def _entropy_finding(self, K: int, N: int) -> Finding:
        r = self.responsibilities
        each = -xlogy(r, r).sum(1) / math.log(max(K, 2))
        return Finding(
            QUESTION,
            "entropy of responsibilities / log K",
            float(each.mean()),
            float(each.std(ddof=1) / math.sqrt(N)) if N > 1 else None,
            "good ≤ 0.25, bad > 0.6",
            PROJECT_DEFAULT,
            graded(float(each.mean()), 0.25, 0.6),
            f"{(r.max(1) < 0.7).mean():.1%} of rows belong to no component with more than 70%.",
            "" if each.mean() <= 0.25 else "Clusters overlap: do not read labels as classes.",
        )


def mixture(pair: ModelGuidePair, *batch: Any, site: str | None = None) -> MixtureComponents:
    """Figures on the discrete local site that the model sums out (`site`, if there are several).

    Raises:
        CannotSayError: there is none, or several and none was named.
    """
    summed = predict.summed_sites(pair, *batch)
    codes = predict.encode(pair, *batch) if summed else {}
    found = {n: r for n, r in codes.items() if n in summed and r.dim() == 2}
    if site is not None:
        found = {n: r for n, r in found.items() if n == site}
    if len(found) != 1:
        raise CannotSayError(
            f"{len(found)} discrete local sites are summed out of the model"
            + (f" ({', '.join(sorted(found))}): name one with site=." if found else ".")
        )
    r = next(iter(found.values())).double().numpy()
    log_likelihood = math.nan
    with pair.scope(), torch.no_grad():
        plan = analyze_for_particles(pair.model, pair.guide, batch, {}, 1)
        if not plan.latents:
            log_w = log_weights(pair.model, pair.guide, *batch, num_particles=1, structure=plan)
            log_likelihood = float(log_w.double().sum())
        judge = getattr(pair.model, "degenerate", None)
        reason = judge(*batch) if callable(judge) else None
    return MixtureComponents(r, log_likelihood, _count_parameters(pair, batch), reason)


def _count_parameters(pair: ModelGuidePair, batch: tuple[Any, ...]) -> int:
    """Elements of the parameters with a gradient: a triangular matrix has entries without.

    Counted a little away from the fit, where gradients of parameters that matter may be zero.
    """
    if not pair.unconstrained_parameters:
        pair.materialize_parameters(*batch)
    leaves: list[Tensor] = list(pair.unconstrained_parameters.values())
    held = [(leaf.detach().clone(), leaf.grad, leaf.requires_grad) for leaf in leaves]
    with pair.scope(), isolated_rng(0):
        try:
            for leaf in leaves:
                leaf.requires_grad_(True)
                leaf.grad = None
                with torch.no_grad():
                    leaf.add_(0.01 * torch.randn_like(leaf))
            pair.objective.loss_and_grads(pair.model, pair.guide, *batch)
            seen = sum(int((leaf.grad != 0).sum()) for leaf in leaves if leaf.grad is not None)
            return seen - _redundant(pair)
        finally:
            for leaf, (value, gradient, flag) in zip(leaves, held, strict=True):
                with torch.no_grad():
                    leaf.copy_(value)
                leaf.grad = gradient
                leaf.requires_grad_(flag)


def _redundant(pair: ModelGuidePair) -> int:
    """One for each simplex: its softmax has an unconstrained number too many."""
    store = pyro.get_param_store()
    named = store._constraints.items()
    found = [
        (c, store[name]) for name, c in named if f"store/{name}" in pair.unconstrained_parameters
    ]
    for _, module in pair.modules():
        for part in module.modules():
            for name, (constraint, _) in getattr(part, "_pyro_params", {}).items():
                found.append((constraint, getattr(part, name)))
    simplex = type(constraints.simplex)
    return sum(value[..., 0].numel() for c, value in found if isinstance(c, simplex))


def match_components(cost: ArrayLike) -> Ints:
    """The permutation σ (K,) of least Σ_k cost[k, σ_k]: component σ_k takes the pivot's place k."""
    matrix = np.asarray(cost, np.float64)
    _, columns = linear_sum_assignment(matrix)
    return np.asarray(columns, np.int64)


def relabel(
    responsibilities: ArrayLike | None = None,
    parameters: ArrayLike | None = None,
    pivot: int | ArrayLike = 0,
) -> Ints:
    """A permutation (S, K) for each of S draws, so that equal places mean equal components.

    Args:
        responsibilities: P (S, N, K): soft ECR, the better choice where both can be had.
        parameters: (S, K, ...): squared distance in units of their sd over draws and components.
        pivot: the draw the others are matched to (its number: best the one of highest density),
            or what to match to, (N, K) or (K, ...).

    Raises:
        ValueError: when not exactly one of the two is given.
    """
    if (responsibilities is None) == (parameters is None):
        raise ValueError("relabel needs responsibilities (S, N, K) or parameters (S, K, ...).")
    if responsibilities is not None:
        P = np.asarray(responsibilities, np.float64)
        to = P[pivot] if isinstance(pivot, int) else np.asarray(pivot, np.float64)
        costs = -np.einsum("nk,snl->skl", to, P)
    else:
        theta = np.asarray(parameters, np.float64)
        theta = theta.reshape(*theta.shape[:2], -1)
        scale = theta.std((0, 1)) + 1e-12
        to = theta[pivot] if isinstance(pivot, int) else np.asarray(pivot, np.float64)
        to = to.reshape(theta.shape[1], -1)
        costs = (((to[None, :, None] - theta[:, None]) / scale) ** 2).sum(-1)  # (S, K, K)
    return np.stack([match_components(cost) for cost in costs])


def relabel_by_divergence(responsibilities: ArrayLike, max_iterations: int = 100) -> Ints:
    """Permutations σ_s (S, K) that make Σ_s Σ_n KL(p_s,n,σ_s ‖ q_n) small, q their mean over draws.

    Stephens' algorithm: given σ the best q (N, K) is the mean of the relabelled draws, and given q
    the best σ_s solves an assignment of cost[k, l] = Σ_n p_snl (log p_snl − log q_nk), each draw by
    itself. Neither step raises the sum, so it ends, at a point that neither can better; it starts
    from `relabel`, since such points depend on the start.

    Args:
        responsibilities: P (S, N, K).

    Raises:
        RuntimeError: permutations still change after `max_iterations`.
    """
    P = np.asarray(responsibilities, np.float64)
    tiny = np.finfo(np.float64).tiny
    entropy = xlogy(P, P).sum(1)  # (S, K)
    order = relabel(responsibilities=P)
    for _ in range(max_iterations):
        q = apply_permutation(P, order, axis=2).mean(0)  # (N, K)
        costs = entropy[:, None, :] - np.einsum("nk,snl->skl", np.log(np.maximum(q, tiny)), P)
        new = np.stack([match_components(cost) for cost in costs])
        if np.array_equal(new, order):
            return order
        order = new
    raise RuntimeError(f"Permutations still change after {max_iterations} iterations: raise them.")


def apply_permutation(draws: ArrayLike, permutation: Ints, axis: int = 1) -> NDArray[Any]:
    """`draws` (S, ...) with draw s's components along `axis` reordered by permutation[s]."""
    x = np.asarray(draws)
    shape = [1] * x.ndim
    shape[0], shape[axis] = permutation.shape
    return np.take_along_axis(x, permutation.reshape(shape), axis)


@dataclass(frozen=True)
class Stability:
    """Of the clustering over restarts.

    Attributes:
        agreement: adjusted Rand index of every two restarts' hard clusterings.
        matched: (S, N, K) responsibilities, components in the first restart's order.
    """

    agreement: Floats
    matched: Floats

    def findings(self) -> list[Finding]:
        mean = float(self.agreement.mean())
        return [
            Finding(
                QUESTION,
                "agreement of restarts' clusterings (adjusted Rand index), mean",
                mean,
                None,
                "good ≥ 0.9, bad < 0.6",
                f"Hubert & Arabie 1985; levels: {PROJECT_DEFAULT}",
                graded(-mean, -0.9, -0.6),
                f"Least agreement of two restarts {self.agreement.min():.2f}.",
                "" if mean >= 0.9 else "Clusters depend on the start: more restarts, other K.",
            )
        ]


def stability(responsibilities: Sequence[ArrayLike]) -> Stability:
    """From the responsibilities (N, K) of at least two restarts on the same rows."""
    P = np.stack([np.asarray(r, np.float64) for r in responsibilities])
    if len(P) < 2:
        raise CannotSayError(
            "Stability needs at least two restarts that came close to the best (restarts=5)."
        )
    hard = P.argmax(2)
    pairs = [
        adjusted_rand_score(hard[i], hard[j]) for i in range(len(P)) for j in range(i + 1, len(P))
    ]
    return Stability(np.array(pairs), apply_permutation(P, relabel(responsibilities=P), axis=2))
