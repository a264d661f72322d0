"""How much of the digits' labels do mixtures of codes find, without labels and with a hundred?

Handwritten digits of 8 × 8 pixels with ink 0 to 16; 1,500 to learn from and 297 held out, another
split for each seed. Without labels: the share of held-out digits that are right when every cluster
stands for one digit, the best such pairing (Hungarian algorithm), for ten clusters by
`GaussianMixtureVAE`, by scikit-learn's k-means (best of 10 starts) and by its GaussianMixture on
10 principal components (best of 5 starts). With labels for ten of each digit: the share that
`SemiSupervisedVAE` classifies right, which sees the other 1,400 without labels, beside logistic
regression on the same 100 labels, and on all 1,500.

The settings here were chosen on the splits of seeds 0 to 2: judge with `--seed 5`.
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

from ppl_lvm.benchmarks import harness as record
from ppl_lvm.benchmarks.harness import Result
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
    """The share of rows that are right when each cluster stands for one class, at best."""
    together = np.zeros((10, 10), int)
    np.add.at(together, (np.asarray(clusters), np.asarray(labels)), 1)
    rows, columns = linear_sum_assignment(-together)
    return float(together[rows, columns].sum() / len(labels))


def clusterings(train: Data, held_out: Data, epochs: int, seed: int) -> dict[str, float]:
    """Method -> accuracy of its clusters on the rows held out; no method sees a label."""
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
    found = {
        "GaussianMixtureVAE": run.encode(new)["c"].argmax(1),
        "k-means": kmeans.predict(new),
        "GMM of 10 components": mixture.predict(axes.transform(new)),
    }
    return {method: matched(clusters, held_out.labels) for method, clusters in found.items()}


def classifications(train: Data, held_out: Data, epochs: int, seed: int) -> dict[str, float]:
    """Method -> share of the rows held out that it classifies right."""
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
    found = run.encode((new, torch.full_like(answer, -1)))["c"].argmax(1)
    few = LogisticRegression(max_iter=2000).fit(x[known] / INK, truth[known])
    every = LogisticRegression(max_iter=2000).fit(x / INK, truth)
    return {
        "SemiSupervisedVAE, 100 labels": (found == answer).float().mean().item(),
        "logistic regression, 100 labels": float(few.score(new / INK, answer)),
        f"logistic regression, {len(x)} labels": float(every.score(new / INK, answer)),
    }


def some_labels(truth: Tensor, seed: int) -> Tensor:
    """Which rows (N,) keep their label: ten of each digit, drawn at random."""
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
    known = torch.zeros(len(truth), dtype=torch.bool)
    for digit in range(10):
        known[order[truth[order] == digit][:EACH]] = True
    return known


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: int = 0, seeds: int = 5
) -> Result:
    """All methods on `seeds` splits; the accuracy of each, its mean and standard error."""
    data = load_data("digits")
    seeds, epochs = (1, (1, 1)) if smoke else (seeds, (100, 60))
    scores: dict[str, list[float]] = {}
    for start in range(seed, seed + seeds):
        train, held_out = data.split(297, start)
        if smoke:
            train, _ = train.split(1250, start)
        found = clusterings(train, held_out, epochs[0], start)
        found |= classifications(train, held_out, epochs[1], start)
        for method, score in found.items():
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
    return record.publish(
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
    """Every seed a point, the mean a line."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    names: Sequence[str] = list(scores)[::-1]
    for height, name in enumerate(names):
        axes.plot(scores[name], [height] * len(scores[name]), "o", color="tab:blue", alpha=0.5)
        axes.plot([statistics.mean(scores[name])], [height], "|", color="black", markersize=18)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of held-out digits that is right", xlim=(None, 1))
    return figure


if __name__ == "__main__":
    record.command(run)
