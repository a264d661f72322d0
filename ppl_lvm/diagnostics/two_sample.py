"""Classifier two-sample tests: can a classifier tell data from draws?

`two_sample` evaluates two fixed classifiers, nearest neighbors and ridge regression on x, x² and
products, by leave-one-out. Its null distribution permutes the labels, which accounts for data
shared between folds and for the choice of the better classifier.

`discriminate` trains a neural classifier. Half of the rows of each side train
a(x) ≈ log p_D(x) - log p_G(x); on the other half a > 0 predicts "data". If the two distributions
are equal, x and y are predicted to be data equally often, whatever a is: the number of right
answers has half of the answers as its mean, and a tail no heavier than a binomial's (Hoeffding
1956, theorem 4). The p-value is therefore conservative. It serves models that can only be sampled
from (a generator), and cases where the fixed classifiers are too weak.

Reference:
    Lopez-Paz, Oquab (2017). Revisiting classifier two-sample tests.
    https://arxiv.org/abs/1610.06545
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Floats, Program
from ppl_lvm.diagnostics.base import Diagnostic
from ppl_lvm.diagnostics.finding import P_VALUE, PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.diagnostics.predictive_checks import QUESTION, REMEDY, flatten_rows, mask_missing
from ppl_lvm.divergences.density_ratio import fit_log_ratio
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.posterior.simulation import observed_arguments, replicated_data

ROWS, NEIGHBORS, PERMUTATIONS = 500, 11, 499
MIN_ROWS = 20  # of a trained discriminator

ACCURACY = Threshold(
    good=0.5,
    bad=0.6,
    source=f"Lopez-Paz & Oquab 2017, arXiv:1610.06545; levels: {PROJECT_DEFAULT}",
    text=f"good if p ≥ {P_VALUE.good}, else bad > 0.6",
)


@dataclass(frozen=True)
class TwoSample:
    """Classifier two-sample test.

    Attributes:
        accuracy: classifier -> leave-one-out accuracy.
        p_value: p-value of the better classifier, by permutation.
        rows: rows of each sample.
    """

    accuracy: dict[str, float]
    p_value: float
    rows: int

    def findings(self) -> list[Finding]:
        best = max(self.accuracy, key=lambda n: self.accuracy[n])
        value = self.accuracy[best]
        if self.p_value >= P_VALUE.good:
            verdict = P_VALUE.grade(self.p_value)
        else:
            verdict = "bad" if value > ACCURACY.bad else "warning"
        return [
            ACCURACY.finding(
                QUESTION,
                "classifier two-sample test: accuracy",
                value,
                math.sqrt(0.25 / (2 * self.rows)),
                verdict=verdict,
                why=f"p = {self.p_value:.3f}; {best} separates {self.rows} rows of data from as "
                "many of the model. A weak classifier misses faults.",
                remedy=REMEDY,
            )
        ]


def two_sample(model: Program, guide: Program, *batch: Any, seed: int = 0) -> TwoSample:
    """Data against one replicated data set, at most 500 rows each.

    Raises:
        CannotSayError: data cannot be simulated from the model.
    """
    with isolated_rng(seed), torch.no_grad():
        structure = analyze_for_particles(model, guide, batch, {}, 2)
        (replicate,) = replicated_data(model, guide, batch, structure, 1, prior=False)
        arguments = observed_arguments(model, *batch)
        x = torch.cat([flatten_rows(batch[i][None])[0] for i in arguments.values()], -1)
        y = mask_missing(torch.cat([flatten_rows(replicate[n])[0] for n in arguments], -1), x)
    generator = np.random.default_rng(seed)
    x_rows = generator.permutation(len(x))[:ROWS]
    y_rows = generator.permutation(len(y))[:ROWS]
    return classify(x.double().numpy()[x_rows], y.double().numpy()[y_rows], generator)


def classify(x: Floats, y: Floats, generator: np.random.Generator) -> TwoSample:
    """Classifier two-sample test of x, y (n, P), its null distribution by permutation.

    Missing values (NaN) are replaced by their column's mean, in x and y alike.
    """
    z = np.concatenate([x, y])
    z = z[:, ~np.isnan(z).all(0)]
    sd = np.nanstd(z, 0)
    z = np.nan_to_num((z - np.nanmean(z, 0))[:, sd > 0] / sd[sd > 0])
    labels = np.repeat([1.0, -1.0], [len(x), len(y)])
    orders = [np.arange(len(z))] + [generator.permutation(len(z)) for _ in range(PERMUTATIONS)]
    Y = labels[np.stack(orders, 1)]  # (2n, 1 + permutations), the true labels first
    scores = np.stack([_accuracy(f(z, Y), Y) for f in (_neighbors, _ridge)])  # (2, 1 + …)
    null = scores[:, 1:]
    best = ((scores - null.mean(1, keepdims=True)) / (null.std(1, keepdims=True) + 1e-12)).max(0)
    p = (1 + (best[1:] >= best[0]).sum()) / (1 + PERMUTATIONS)
    return TwoSample(
        {"nearest neighbors": float(scores[0, 0]), "ridge": float(scores[1, 0])}, float(p), len(x)
    )


def _accuracy(predicted: Floats, Y: Floats) -> Floats:
    accuracy: Floats = (np.sign(predicted) == Y).mean(0)
    return accuracy


def _neighbors(z: Floats, Y: Floats) -> Floats:
    """Vote of each row's nearest other rows: (2n, permutations)."""
    square = (z**2).sum(1)
    distance = square[:, None] + square - 2 * z @ z.T
    np.fill_diagonal(distance, np.inf)
    k = min(NEIGHBORS, (len(z) - 1) // 2 * 2 - 1)
    nearest = np.argpartition(distance, k, axis=1)[:, :k]  # (2n, k)
    votes = np.zeros_like(Y)
    for j in range(k):
        votes += Y[nearest[:, j]]
    return votes


def _ridge(z: Floats, Y: Floats) -> Floats:
    """Leave-one-out prediction by ridge regression: y − (y − ŷ) / (1 − h)."""
    P = z.shape[1]
    features = [np.ones((len(z), 1)), z, z**2]
    if P <= 10:
        i, j = np.triu_indices(P, 1)
        features.append(z[:, i] * z[:, j])
    A = np.concatenate(features, 1)
    gram = A.T @ A + 0.01 * len(z) * np.eye(A.shape[1])
    H = A @ np.linalg.solve(gram, A.T)  # (2n, 2n)
    predicted: Floats = Y - (Y - H @ Y) / (1 - np.diag(H))[:, None]
    return predicted


def discriminate(
    x: Tensor, y: Tensor, *, discriminator: nn.Module | None = None, seed: int = 0
) -> TwoSample:
    """Accuracy and p-value of a discriminator between rows x (N, P) of data and y (M, P) of draws.

    Args:
        discriminator: trained in place; by default a new `Discriminator`. It must not have been
            trained on these rows.

    Raises:
        ValueError: fewer than 20 rows of either, or different columns.
    """
    from scipy.stats import binom

    if min(len(x), len(y)) < MIN_ROWS:
        raise ValueError(
            f"A two-sample test needs {MIN_ROWS} rows of each; got {len(x)} and {len(y)}."
        )
    n = min(len(x), len(y)) // 2
    generator = torch.Generator().manual_seed(seed)
    rows = [part[torch.randperm(len(part), generator=generator)] for part in (x, y)]
    a = fit_log_ratio(rows[0][n:], rows[1][n:], discriminator, seed=seed)
    with torch.no_grad():
        correct = int((a(rows[0][:n]) > 0).sum()) + int((a(rows[1][:n]) <= 0).sum())
    p_value = float(binom.sf(correct - 1, 2 * n, 0.5))
    return TwoSample({"discriminator": correct / (2 * n)}, p_value, n)


TWO_SAMPLE = Diagnostic(
    slug="two_sample",
    question=QUESTION,
    title="classifier two-sample test",
    run=lambda c: two_sample(c.model, c.guide, *c.rows, seed=c.seed),
    spoils=("samples",),
)
