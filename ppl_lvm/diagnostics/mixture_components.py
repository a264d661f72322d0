"""Mixtures: components used, overlap, label switching, stability, information criteria.

Component labels are arbitrary: draws or restarts must be relabeled before they are averaged.
`relabel` computes the permutation of each draw's components that agrees best with a pivot, from
responsibilities P (S, N, K) (soft ECR: cost −P_pivᵀ P_s, solved by the Hungarian method) or from
parameters (squared distances to the pivot's). `relabel_by_divergence` needs no pivot: it searches
for the permutations under which all draws' responsibilities lie closest to their mean. Quantities
without labels are safer still: weights in sorted order, the number of components in use, and the
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
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Floats
from ppl_lvm.diagnostics.base import Context, Diagnostic
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.posterior import predict
from ppl_lvm.programs.pair import ModelGuidePair

QUESTION = "Mixtures: are the components sound?"
Ints = NDArray[np.int64]

USED_SHARE = Threshold(
    good=1.0,
    bad=0.0,
    larger_is_better=True,
    text="used: at least one row; good all, bad collapsed",
)
ENTROPY = Threshold(good=0.25, bad=0.6)
AGREEMENT = Threshold(
    good=0.9,
    bad=0.6,
    larger_is_better=True,
    source=f"Hubert & Arabie 1985; levels: {PROJECT_DEFAULT}",
)


@dataclass(frozen=True)
class MixtureComponents:
    """Responsibilities of a mixture, and its information criteria.

    Attributes:
        responsibilities: r (N, K).
        log_likelihood: Σ_n log p(x_n), NaN where the guide has latents.
        num_parameters: m.
        degenerate: reason by the model not to select this fit, or None.
    """

    responsibilities: Floats
    log_likelihood: float
    num_parameters: int
    degenerate: str | None

    @property
    def sizes(self) -> Floats:
        """N_k (K,): rows that each component explains."""
        return self.responsibilities.sum(0)

    @property
    def used(self) -> int:
        """Components that explain at least one row."""
        return int((self.sizes >= 1).sum())

    @property
    def entropy(self) -> float:
        """H, nats per row."""
        return float(entropy(self.responsibilities).mean())

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
        rows = [self._used_finding(), self._entropy_finding()]
        if math.isfinite(self.log_likelihood):
            rows.append(
                Finding(
                    question=QUESTION,
                    name="BIC (smaller is better)",
                    value=self.bic,
                    threshold="none: compare fits of the same data",
                    source="Schwarz 1978",
                    why=f"AIC {self.aic:.1f}, ICL {self.icl:.1f}, {self.num_parameters} "
                    "parameters. The criterion of a single fit has no meaning.",
                    remedy="Fit other numbers of components and compare.",
                )
            )
        return rows

    def _used_finding(self) -> Finding:
        K = len(self.sizes)
        return USED_SHARE.finding(
            QUESTION,
            f"components used of {K}",
            float(self.used),
            verdict="bad" if self.degenerate else "good" if self.used == K else "warning",
            why=self.degenerate
            or "Rows of each component: " + ", ".join(f"{n:.1f}" for n in self.sizes[:12]) + ".",
            remedy="More restarts (restarts=), or a higher variance floor."
            if self.degenerate
            else "Use fewer components; in a Bayesian mixture unused ones do no harm.",
        )

    def _entropy_finding(self) -> Finding:
        r = self.responsibilities
        N, K = r.shape
        relative = entropy(r) / math.log(max(K, 2))
        return ENTROPY.finding(
            QUESTION,
            "entropy of responsibilities / log K",
            float(relative.mean()),
            float(relative.std(ddof=1) / math.sqrt(N)) if N > 1 else None,
            why=f"{(r.max(1) < 0.7).mean():.1%} of rows belong to no component with more than 70%.",
            remedy="Clusters overlap: do not read labels as classes.",
        )


def mixture_components(
    pair: ModelGuidePair, *batch: Any, site: str | None = None
) -> MixtureComponents:
    """Components of the discrete local site that the model sums out.

    Args:
        site: its name, if there are several.

    Raises:
        CannotSayError: there is no such site, or several and no name.
    """
    summed = predict.summed_sites(pair, *batch, local=True)
    codes = predict.encode(pair, *batch) if summed else {}
    discrete = {n: r for n, r in codes.items() if n in summed and r.dim() == 2}
    if site is not None:
        discrete = {n: r for n, r in discrete.items() if n == site}
    if len(discrete) != 1:
        raise CannotSayError(
            f"{len(discrete)} discrete local sites are summed out of the model"
            + (f" ({', '.join(sorted(discrete))}): name one with site=." if discrete else "."),
            verdict="unknown" if discrete else "not applicable",
        )
    r = next(iter(discrete.values())).double().numpy()
    log_likelihood = math.nan
    with pair.scope(), torch.no_grad():
        structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 1)
        if not structure.latents:
            log_w = log_weights(
                pair.model, pair.guide, *batch, num_particles=1, structure=structure
            )
            log_likelihood = float(log_w.double().sum())
        degenerate = getattr(pair.model, "degenerate", None)
        reason = degenerate(*batch) if callable(degenerate) else None
    return MixtureComponents(r, log_likelihood, count_parameters(pair, batch), reason)


def count_parameters(pair: ModelGuidePair, batch: Batch) -> int:
    """Elements of the parameters with a gradient: a triangular matrix has entries without.

    Counted at slightly perturbed parameters, because gradients may vanish at the fit.
    """
    if not pair.unconstrained_parameters:
        pair.materialize_parameters(*batch)
    leaves: list[Tensor] = list(pair.unconstrained_parameters.values())
    before = [(leaf.detach().clone(), leaf.grad, leaf.requires_grad) for leaf in leaves]
    with pair.scope(), isolated_rng(0):
        try:
            for leaf in leaves:
                leaf.requires_grad_(True)
                leaf.grad = None
                with torch.no_grad():
                    leaf.add_(0.01 * torch.randn_like(leaf))
            pair.objective.loss_and_grads(pair.model, pair.guide, *batch)
            count = sum(int((leaf.grad != 0).sum()) for leaf in leaves if leaf.grad is not None)
            return count - _redundant(pair)
        finally:
            for leaf, (value, gradient, requires_grad) in zip(leaves, before, strict=True):
                with torch.no_grad():
                    leaf.copy_(value)
                leaf.grad = gradient
                leaf.requires_grad_(requires_grad)


def _redundant(pair: ModelGuidePair) -> int:
    """Number of simplexes: the softmax of each has one redundant unconstrained parameter."""
    store = pyro.get_param_store()
    constrained = [
        (constraint, store[name])
        for name, constraint in store._constraints.items()
        if f"store/{name}" in pair.unconstrained_parameters
    ]
    for _, module in pair.modules():
        for part in module.modules():
            for name, (constraint, _) in getattr(part, "_pyro_params", {}).items():
                constrained.append((constraint, getattr(part, name)))
    simplex = type(constraints.simplex)
    return sum(value[..., 0].numel() for c, value in constrained if isinstance(c, simplex))


def entropy(p: Floats) -> Floats:
    """−Σ p log p over dimension 1."""
    from scipy.special import xlogy

    return np.asarray(-xlogy(p, p).sum(1))


def match_components(cost: ArrayLike) -> Ints:
    """The permutation σ (K,) that minimizes Σ_k cost[k, σ_k]: σ_k takes the pivot's place k."""
    from scipy.optimize import linear_sum_assignment

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
        responsibilities: P (S, N, K): soft ECR, the better choice where both are available.
        parameters: (S, K, ...): squared distance in units of their sd over draws and components.
        pivot: index of the draw that the others are matched to (best the one of highest density),
            or its values, (N, K) or (K, ...).

    Raises:
        ValueError: both or neither of `responsibilities` and `parameters`.
    """
    if (responsibilities is None) == (parameters is None):
        raise ValueError("relabel needs responsibilities (S, N, K) or parameters (S, K, ...).")
    if responsibilities is not None:
        P = np.asarray(responsibilities, np.float64)
        target = P[pivot] if isinstance(pivot, int) else np.asarray(pivot, np.float64)
        costs = -np.einsum("nk,snl->skl", target, P)
    else:
        theta = np.asarray(parameters, np.float64)
        theta = theta.reshape(*theta.shape[:2], -1)
        scale = theta.std((0, 1)) + 1e-12
        target = theta[pivot] if isinstance(pivot, int) else np.asarray(pivot, np.float64)
        target = target.reshape(theta.shape[1], -1)
        costs = (((target[None, :, None] - theta[:, None]) / scale) ** 2).sum(-1)  # (S, K, K)
    return np.stack([match_components(cost) for cost in costs])


def relabel_by_divergence(responsibilities: ArrayLike, max_iterations: int = 100) -> Ints:
    """Permutations σ_s (S, K) that minimize Σ_s Σ_n KL(p_s,n,σ_s ‖ q_n), q their mean over draws.

    Stephens' algorithm: given σ the best q (N, K) is the mean of the relabeled draws, and given q
    the best σ_s solves an assignment of cost[k, l] = Σ_n p_snl (log p_snl − log q_nk), separately
    for each draw. Neither step raises the sum, so the algorithm ends at a local optimum. It is
    initialized by `relabel`, since the optimum depends on the initial permutations.

    Args:
        responsibilities: P (S, N, K).

    Raises:
        RuntimeError: permutations still change after `max_iterations`.
    """
    P = np.asarray(responsibilities, np.float64)
    tiny = np.finfo(np.float64).tiny
    negative_entropy = -entropy(P)  # (S, K)
    order = relabel(responsibilities=P)
    for _ in range(max_iterations):
        q = apply_permutation(P, order, axis=2).mean(0)  # (N, K)
        cross = np.einsum("nk,snl->skl", np.log(np.maximum(q, tiny)), P)
        costs = negative_entropy[:, None, :] - cross
        new = np.stack([match_components(cost) for cost in costs])
        if np.array_equal(new, order):
            return order
        order = new
    raise RuntimeError(
        f"Permutations still change after {max_iterations} iterations: raise max_iterations."
    )


def apply_permutation(draws: ArrayLike, permutation: Ints, axis: int = 1) -> NDArray[Any]:
    """`draws` (S, ...) with draw s's components along `axis` reordered by permutation[s]."""
    x = np.asarray(draws)
    shape = [1] * x.ndim
    shape[0], shape[axis] = permutation.shape
    return np.take_along_axis(x, permutation.reshape(shape), axis)


@dataclass(frozen=True)
class ClusteringStability:
    """Agreement of the clustering over restarts.

    Attributes:
        agreement: adjusted Rand index of every two restarts' hard clusterings.
        matched: (S, N, K) responsibilities, components in the first restart's order.
    """

    agreement: Floats
    matched: Floats

    def findings(self) -> list[Finding]:
        return [
            AGREEMENT.finding(
                QUESTION,
                "agreement of restarts' clusterings (adjusted Rand index), smallest of two",
                float(self.agreement.min()),
                why=f"Mean over {len(self.agreement)} pairs {self.agreement.mean():.2f}.",
                remedy="Clusters depend on the restart: use more restarts, or another K.",
            )
        ]


def clustering_stability(responsibilities: Sequence[ArrayLike]) -> ClusteringStability:
    """Agreement of the responsibilities (N, K) of at least two restarts on the same rows."""
    from sklearn.metrics import adjusted_rand_score

    P = np.stack([np.asarray(r, np.float64) for r in responsibilities])
    if len(P) < 2:
        raise CannotSayError(
            "Stability needs at least two restarts that reach the best bound.",
            "More restarts (restarts=5).",
        )
    labels = P.argmax(2)
    agreement = [
        adjusted_rand_score(labels[i], labels[j])
        for i in range(len(P))
        for j in range(i + 1, len(P))
    ]
    matched = apply_permutation(P, relabel(responsibilities=P), axis=2)
    return ClusteringStability(np.array(agreement), matched)


def _run_stability(context: Context) -> ClusteringStability:
    """Stability over the restarts that reached the best bound."""
    restarts = context.restarts
    responsibilities = [
        trajectory.responsibilities
        for trajectory, near in zip(restarts.trajectories, restarts.reached_best, strict=False)
        if near
    ]
    sites = {name for by_site in responsibilities for name in by_site}
    if len(sites) != 1:
        raise CannotSayError(
            "No discrete local site, or several, are summed out of the model.",
            verdict="not applicable",
        )
    (site,) = sites
    return clustering_stability([by_site[site] for by_site in responsibilities])


def _has_clusterings(context: Context) -> bool:
    restarts = context.restarts
    return len(restarts.bounds) > 1 and any(t.responsibilities for t in restarts.trajectories)


MIXTURE_COMPONENTS = Diagnostic(
    slug="mixtures",
    question=QUESTION,
    title="components",
    run=lambda c: mixture_components(c.pair, *c.rows),
    spoils=("groups",),
)
CLUSTERING_STABILITY = Diagnostic(
    slug="stability",
    question=QUESTION,
    title="stability of the clustering over restarts",
    run=_run_stability,
    applies=_has_clusterings,
    spoils=("groups",),
)
