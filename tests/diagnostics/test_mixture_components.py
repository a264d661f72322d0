"""Mixtures: relabeling, criteria, unused components, stability."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from sklearn.mixture import GaussianMixture as Reference

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.mixture_components import (
    MixtureComponents,
    apply_permutation,
    clustering_stability,
    mixture_components,
    relabel,
    relabel_by_divergence,
)
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.programs.pair import ModelGuidePair


def _mixture(separation: float) -> Any:
    score = separation * np.random.default_rng(0).normal(size=(60, 3))
    score[:, 2] -= 0 if separation > 1 else 30  # the third component explains no row
    r = np.exp(score - score.max(1, keepdims=True))
    return MixtureComponents(r / r.sum(1, keepdims=True), -100.0, 5, None)


def _stability(shuffled: bool) -> Any:
    generator = np.random.default_rng(0)
    first = np.eye(3)[generator.integers(3, size=60)]
    second = first[generator.permutation(60)] if shuffled else first[:, [2, 0, 1]]
    return clustering_stability([first, second])


CASES = {
    "mixtures": DiagnosticCases(
        good=[lambda: _mixture(8.0)],
        faulty=[lambda: _mixture(0.1)],
        ungraded=frozenset({"BIC (smaller is better)"}),
    ),
    "stability": DiagnosticCases(
        good=[lambda: _stability(False)], faulty=[lambda: _stability(True)]
    ),
}


def guide(x: torch.Tensor) -> None:
    """No latents: the cluster is summed out."""


def clusters(separation: float = 6.0, rows: int = 100) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, rows, 2, generator=generator)
    return (x + separation * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[:, None]).reshape(
        -1, 2
    )


def fitted(x: torch.Tensor, components: int) -> ModelGuidePair:
    model = GaussianMixture(components, 2)
    model.initialize(x)
    for _ in range(100):
        model.maximize(x, model.responsibilities(x))
    pair = ModelGuidePair(model, guide, TraceEnum_ELBO())
    pair.materialize_parameters(x)
    return pair


def test_separated_clusters_are_good_and_criteria_meet_scikit_learn() -> None:
    x = clusters()
    result = mixture_components(fitted(x, 3), x)
    assert [f.verdict for f in result.findings()] == ["good", "good", "unknown"]
    reference = Reference(3, random_state=0, tol=1e-9, reg_covar=1e-6).fit(x.numpy())
    assert result.num_parameters == 2 + 6 + 9
    assert result.bic == pytest.approx(reference.bic(x.numpy()), abs=0.05)
    assert result.aic == pytest.approx(reference.aic(x.numpy()), abs=0.05)
    assert result.icl >= result.bic


def test_overlapping_clusters_are_bad() -> None:
    x = clusters(separation=0.3)
    pair = fitted(x, 3)
    with pair.scope(), torch.no_grad():
        pair.model.means = pair.model.means.mean(0).expand(3, 2).clone()
    assert mixture_components(pair, x).findings()[1].verdict == "bad"


def test_unused_component_is_a_warning() -> None:
    x = clusters()
    pair = fitted(x, 3)
    with pair.scope(), torch.no_grad():
        pair.model.means = pair.model.means + 1000.0 * torch.tensor([[1.0], [0.0], [0.0]])
    result = mixture_components(pair, x)
    assert result.used == 2
    assert result.findings()[0].verdict == "warning"


def test_collapsed_component_is_bad_with_the_reason_of_the_model() -> None:
    x = clusters()
    x[:20] = x[0]
    pair = fitted(x, 3)
    model = pair.model
    r = torch.zeros(300, 3)
    r[:20, 0], r[20:160, 1], r[160:, 2] = 1, 1, 1
    with pair.scope():
        model.maximize(x, r)
    row = mixture_components(pair, x).findings()[0]
    assert row.verdict == "bad"
    assert "collapsed" in row.why


def test_mixture_components_reject_models_without_a_mixture(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(5)
    with pytest.raises(CannotSayError, match="0 discrete"):
        mixture_components(ModelGuidePair(linear, exact_guide(linear), Trace_ELBO()), x)


@pytest.mark.parametrize("by", ["responsibilities", "parameters"])
def test_relabel_restores_shuffled_labels(by: str) -> None:
    generator = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    draws = means + generator.normal(0, 0.3, (50, 4, 2))
    x = generator.normal(means[:, None], 1, (4, 20, 2)).reshape(-1, 2)
    P = np.exp(-0.5 * ((x[:, None] - draws[:, None]) ** 2).sum(-1))
    P /= P.sum(-1, keepdims=True)  # (S, N, K)
    shuffle = np.stack([generator.permutation(4) for _ in range(50)])
    mixed, Q = apply_permutation(draws, shuffle), apply_permutation(P, shuffle, axis=2)
    order = relabel(responsibilities=Q) if by == "responsibilities" else relabel(parameters=mixed)
    back = apply_permutation(mixed, order)
    assert (back.std(0) < 0.5).all()
    assert (mixed.std(0) > 1).all()  # averages without relabeling have no meaning


def divergence(P: Any, order: Any) -> float:
    """Σ_s Σ_n KL(p_s,n,σ_s ‖ q_n), by definition."""
    permuted = apply_permutation(P, np.asarray(order), axis=2)
    return float((permuted * np.log(permuted / permuted.mean(0))).sum())


def test_relabel_by_divergence_restores_shuffled_labels() -> None:
    generator = np.random.default_rng(1)
    truth = np.eye(4)[generator.integers(0, 4, 60)] + 0.05
    P = truth * np.exp(0.2 * generator.normal(size=(20, 60, 4)))
    P /= P.sum(-1, keepdims=True)
    shuffle = np.stack([generator.permutation(4) for _ in range(20)])
    order = relabel_by_divergence(apply_permutation(P, shuffle, axis=2))
    back = np.take_along_axis(shuffle, order, 1)  # one labeling for all draws
    assert (back == back[0]).all()
    inverse = np.argsort(order, 1)  # the usual mistake: the inverse permutation
    wrong = np.take_along_axis(shuffle, inverse, 1)
    assert not (wrong == wrong[0]).all()


@pytest.mark.parametrize("seed", range(6))
def test_relabel_by_divergence_reaches_the_minimum_over_all_permutations(seed: int) -> None:
    generator = np.random.default_rng(seed)
    center = generator.dirichlet(np.full(3, 0.5), 12)
    P = np.stack([0.6 * center + 0.4 * generator.dirichlet(np.ones(3), 12) for _ in range(4)])
    P = apply_permutation(P, np.stack([generator.permutation(3) for _ in range(4)]), axis=2)
    permutations = relabel_by_divergence(P)
    every = [list(p) for p in itertools.permutations(range(3))]
    rest = itertools.product(every, repeat=3)  # the first draw's labels are free
    least = min(divergence(P, [[0, 1, 2], *others]) for others in rest)
    assert divergence(P, permutations) == pytest.approx(least)
    q = apply_permutation(P, permutations, axis=2).mean(0)
    for p, order in zip(P, permutations, strict=True):  # each draw's is the best for this q
        costs = {tuple(o): (p[:, o] * np.log(p[:, o] / q)).sum() for o in every}
        assert min(costs, key=lambda o: costs[o]) == tuple(order)


def test_relabel_by_divergence_is_robust_to_an_atypical_pivot() -> None:
    """An atypical pivot misleads ECR, but not the mean of all draws."""
    generator = np.random.default_rng(0)
    sure = np.tile([0.9, 0.1], (10, 1))
    P = np.stack([np.tile([0.45, 0.55], (10, 1)), *[sure] * 4, *[sure[:, ::-1]] * 2])
    P = P * np.exp(0.01 * generator.normal(size=P.shape))
    P /= P.sum(-1, keepdims=True)
    P[0, :5] = P[0, :5, ::-1]  # the pivot's two halves contradict each other
    permutations, by_pivot = relabel_by_divergence(P), relabel(responsibilities=P)
    assert divergence(P, permutations) <= divergence(P, by_pivot)
    assert (permutations[1:5] == permutations[1]).all()
    assert (permutations[5:] == permutations[1][::-1]).all()
    hard = np.stack([np.eye(2)[[0, 0, 1]], np.eye(2)[[1, 1, 0]]])  # zeros: 0 log 0 = 0
    assert (relabel_by_divergence(hard) == [[0, 1], [1, 0]]).all()


def test_stability_ignores_labels_and_detects_another_clustering() -> None:
    generator = np.random.default_rng(0)
    r = np.eye(3)[generator.integers(0, 3, 200)]
    same = clustering_stability([r, r[:, [2, 0, 1]], r[:, [1, 0, 2]]])
    assert same.findings()[0].verdict == "good"
    np.testing.assert_array_equal(same.matched, np.stack([r, r, r]))
    other = clustering_stability([r, np.eye(3)[generator.integers(0, 3, 200)]])
    assert other.findings()[0].verdict == "bad"
    with pytest.raises(CannotSayError, match="two restarts"):
        clustering_stability([r])


def test_relabel_rejects_calls_without_draws() -> None:
    with pytest.raises(ValueError, match="needs responsibilities"):
        relabel()
