"""Mixtures: label switching undone, criteria against scikit-learn, unused components named."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from sklearn.mixture import GaussianMixture as Reference

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.mixture_components import (
    apply_permutation,
    mixture,
    relabel,
    relabel_by_divergence,
    stability,
)
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.programs.pair import ModelGuidePair


def guide(x: torch.Tensor) -> None:
    """Nothing: the cluster is summed out."""


def clusters(apart: float = 6.0, rows: int = 100) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, rows, 2, generator=generator)
    return (x + apart * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[:, None]).reshape(-1, 2)


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
    found = mixture(fitted(x, 3), x)
    assert [f.verdict for f in found.findings()] == ["good", "good", "unknown"]
    reference = Reference(3, random_state=0, tol=1e-9, reg_covar=1e-6).fit(x.numpy())
    assert found.num_parameters == 2 + 6 + 9
    assert found.bic == pytest.approx(reference.bic(x.numpy()), abs=0.05)
    assert found.aic == pytest.approx(reference.aic(x.numpy()), abs=0.05)
    assert found.icl >= found.bic


def test_overlapping_clusters_are_found() -> None:
    x = clusters(apart=0.3)
    pair = fitted(x, 3)
    with pair.scope(), torch.no_grad():
        pair.model.means.copy_(pair.model.means.mean(0).expand(3, 2))
    assert mixture(pair, x).findings()[1].verdict == "bad"


def test_unused_component_is_found() -> None:
    x = clusters()
    pair = fitted(x, 3)
    with pair.scope(), torch.no_grad():
        pair.model.means[0] += 1000.0
    found = mixture(pair, x)
    assert found.used == 2
    assert found.findings()[0].verdict == "warning"


def test_collapsed_component_is_bad_for_the_models_reason() -> None:
    x = clusters()
    x[:20] = x[0]
    pair = fitted(x, 3)
    model = pair.model
    r = torch.zeros(300, 3)
    r[:20, 0], r[20:160, 1], r[160:, 2] = 1, 1, 1
    with pair.scope():
        model.maximize(x, r)
    row = mixture(pair, x).findings()[0]
    assert row.verdict == "bad"
    assert "collapsed" in row.why


def test_no_mixture_cannot_say(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(5)
    with pytest.raises(CannotSayError, match="0 discrete"):
        mixture(ModelGuidePair(linear, exact_guide(linear), Trace_ELBO()), x)


@pytest.mark.parametrize("by", ["responsibilities", "parameters"])
def test_shuffled_labels_are_put_back(by: str) -> None:
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
    assert (mixed.std(0) > 1).all()  # averaged as they came they would mean nothing


def divergence(P: Any, order: Any) -> float:
    """Σ_s Σ_n KL(p_s,n,σ_s ‖ q_n), as it is written."""
    moved = apply_permutation(P, np.asarray(order), axis=2)
    return float((moved * np.log(moved / moved.mean(0))).sum())


def test_divergence_puts_shuffled_components_back() -> None:
    generator = np.random.default_rng(1)
    truth = np.eye(4)[generator.integers(0, 4, 60)] + 0.05
    P = truth * np.exp(0.2 * generator.normal(size=(20, 60, 4)))
    P /= P.sum(-1, keepdims=True)
    shuffle = np.stack([generator.permutation(4) for _ in range(20)])
    order = relabel_by_divergence(apply_permutation(P, shuffle, axis=2))
    back = np.take_along_axis(shuffle, order, 1)  # one naming for all draws, whichever it is
    assert (back == back[0]).all()
    inverse = np.argsort(order, 1)  # the commonest mistake: the permutation the other way round
    wrong = np.take_along_axis(shuffle, inverse, 1)
    assert not (wrong == wrong[0]).all()


@pytest.mark.parametrize("seed", range(6))
def test_divergence_is_the_least_of_all_permutations(seed: int) -> None:
    generator = np.random.default_rng(seed)
    center = generator.dirichlet(np.full(3, 0.5), 12)
    P = np.stack([0.6 * center + 0.4 * generator.dirichlet(np.ones(3), 12) for _ in range(4)])
    P = apply_permutation(P, np.stack([generator.permutation(3) for _ in range(4)]), axis=2)
    found = relabel_by_divergence(P)
    every = [list(p) for p in itertools.permutations(range(3))]
    rest = itertools.product(every, repeat=3)  # the first draw's names are free
    least = min(divergence(P, [[0, 1, 2], *others]) for others in rest)
    assert divergence(P, found) == pytest.approx(least)
    q = apply_permutation(P, found, axis=2).mean(0)
    for p, own in zip(P, found, strict=True):  # and each draw's is the best for this q
        each = {tuple(o): (p[:, o] * np.log(p[:, o] / q)).sum() for o in every}
        assert min(each, key=lambda o: each[o]) == tuple(own)


def test_divergence_weighs_what_a_pivot_cannot() -> None:
    """A pivot that is an odd draw misleads ECR, and not the mean of all draws."""
    generator = np.random.default_rng(0)
    sure = np.tile([0.9, 0.1], (10, 1))
    P = np.stack([np.tile([0.45, 0.55], (10, 1)), *[sure] * 4, *[sure[:, ::-1]] * 2])
    P = P * np.exp(0.01 * generator.normal(size=P.shape))
    P /= P.sum(-1, keepdims=True)
    P[0, :5] = P[0, :5, ::-1]  # the pivot's two halves contradict each other
    found, by_pivot = relabel_by_divergence(P), relabel(responsibilities=P)
    assert divergence(P, found) <= divergence(P, by_pivot)
    assert (found[1:5] == found[1]).all()
    assert (found[5:] == found[1][::-1]).all()
    hard = np.stack([np.eye(2)[[0, 0, 1]], np.eye(2)[[1, 1, 0]]])  # zeros: 0 log 0 = 0
    assert (relabel_by_divergence(hard) == [[0, 1], [1, 0]]).all()


def test_stability_ignores_names_and_sees_another_clustering() -> None:
    generator = np.random.default_rng(0)
    r = np.eye(3)[generator.integers(0, 3, 200)]
    same = stability([r, r[:, [2, 0, 1]], r[:, [1, 0, 2]]])
    assert same.findings()[0].verdict == "good"
    np.testing.assert_array_equal(same.matched, np.stack([r, r, r]))
    other = stability([r, np.eye(3)[generator.integers(0, 3, 200)]])
    assert other.findings()[0].verdict == "bad"
    with pytest.raises(CannotSayError, match="two restarts"):
        stability([r])


def test_relabel_needs_one_of_two() -> None:
    with pytest.raises(ValueError, match="needs responsibilities"):
        relabel()
