"""Digit classes found without labels and with a hundred labels.

How accurately do mixture models of latents recover the digits, without labels and with a hundred?

Handwritten digits of 8 × 8 pixels with ink 0 to 16; 1,500 for training and 297 held out, with
another split for each seed. Without labels: accuracy on held-out digits under the best assignment
of clusters to digits (Hungarian algorithm), for ten clusters by `GaussianMixtureVAE`, by
scikit-learn's k-means (best of 10 restarts) and its GaussianMixture on 10 principal components
(best of 5 restarts). With ten labels per digit: accuracy of `SemiSupervisedVAE`, trained on the
other 1,400 rows without labels too, against logistic regression on the same 100 labels and on all
1,500.

The settings were chosen on the splits of seeds 0 to 2: evaluate with `--seed 5`.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Result
from ppl_lvm.core.validate import Count, Seed
from ppl_lvm.data import Data, load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import auto_guide, label_free
from ppl_lvm.models import GaussianMixtureVAE, SemiSupervisedVAE

INK = 16.0
EACH = 10  # labels of each digit
TRAINING: dict[str, Any] = {
    "optimizer": "Adam(lr=0.002)",
    "batch_size": 128,
    "engine": "auto",
    "progress": False,
}


def matched(clusters: Any, labels: Any) -> float:
    """Accuracy under the best assignment of clusters to classes."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (np.asarray(clusters), np.asarray(labels)), 1)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / len(labels))


def clusterings(train: Data, held_out: Data, epochs: int, seed: int) -> dict[str, float]:
    """Method -> accuracy of its clusters on held-out rows; no method uses labels."""
    x, new = (part.tensors[0] for part in (train, held_out))
    assert held_out.labels is not None
    run = fit(
        GaussianMixtureVAE,
        auto_guide,
        train,
        settings={"latent": 10, "likelihood": "gaussian-shared", "floor": 0.1},
        num_epochs=epochs,
        seed=seed,
        **TRAINING,
    )
    kmeans = KMeans(10, n_init=10, random_state=seed).fit(x)
    axes = PCA(10).fit(x)
    mixture = GaussianMixture(10, n_init=5, random_state=seed).fit(axes.transform(x))
    clusters = {
        "GaussianMixtureVAE": run.encode(new)["c"].argmax(1),
        "k-means": kmeans.predict(new),
        "GMM of 10 components": mixture.predict(axes.transform(new)),
    }
    return {method: matched(c, held_out.labels) for method, c in clusters.items()}


def classifications(train: Data, held_out: Data, epochs: int, seed: int) -> dict[str, float]:
    """Method -> accuracy on held-out rows."""
    x, new = (part.tensors[0] for part in (train, held_out))
    truth, answer = train.labels, held_out.labels
    assert truth is not None
    assert answer is not None
    known = some_labels(truth, seed)
    run = fit(
        SemiSupervisedVAE,
        label_free,
        (x, torch.where(known, truth, -1)),
        settings={"latent": 16, "likelihood": "gaussian-shared", "floor": 0.1},
        num_epochs=epochs,
        seed=seed,
        **TRAINING,
    )
    predicted = run.encode((new, torch.full_like(answer, -1)))["c"].argmax(1)
    few = LogisticRegression(max_iter=2000).fit(x[known] / INK, truth[known])
    every = LogisticRegression(max_iter=2000).fit(x / INK, truth)
    return {
        "SemiSupervisedVAE, 100 labels": (predicted == answer).float().mean().item(),
        "logistic regression, 100 labels": float(few.score(new / INK, answer)),
        f"logistic regression, {len(x)} labels": float(every.score(new / INK, answer)),
    }


def some_labels(truth: Tensor, seed: int) -> Tensor:
    """Mask (N,) of labeled rows: ten of each digit at random."""
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
    known = torch.zeros(len(truth), dtype=torch.bool)
    for digit in range(10):
        known[order[truth[order] == digit][:EACH]] = True
    return known


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0, seeds: Count = 5
) -> Result:
    """Accuracies of all methods on `seeds` splits, with mean and standard error."""
    data = load_data("digits")
    seeds, epochs = (1, (1, 1)) if smoke else (seeds, (100, 60))
    scores: dict[str, list[float]] = {}
    for split_seed in range(seed, seed + seeds):
        train, held_out = data.split(297, split_seed)
        if smoke:
            train, _ = train.split(1250, split_seed)
        accuracies = clusterings(train, held_out, epochs[0], split_seed)
        accuracies |= classifications(train, held_out, epochs[1], split_seed)
        for method, score in accuracies.items():
            scores.setdefault(method, []).append(score)
    rows = [
        {
            "method": method,
            "accuracy": statistics.mean(each),
            "standard error": statistics.stdev(each) / len(each) ** 0.5 if seeds > 1 else None,
            "lowest": min(each),
            "highest": max(each),
        }
        for method, each in scores.items()
    ]
    return harness.publish(
        "digit_labels",
        __doc__ or "",
        rows,
        draw(scores),
        seed=seed,
        directory=directory,
        smoke=smoke,
        scores=scores,
    )


def draw(scores: dict[str, list[float]]) -> Figure:
    """One point per seed, the mean as a line."""
    figure, (axes,) = harness.new_figure(6, 3.6)
    names: Sequence[str] = list(scores)[::-1]
    for height, name in enumerate(names):
        axes.plot(scores[name], [height] * len(scores[name]), "o", color="tab:blue", alpha=0.5)
        axes.plot([statistics.mean(scores[name])], [height], "|", color="black", markersize=18)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="accuracy on held-out digits", xlim=(None, 1))
    return figure


if __name__ == "__main__":
    harness.command(run)
