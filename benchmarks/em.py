"""Time per EM iteration, against scikit-learn and for restarts.

How long does an iteration of EM take, relative to scikit-learn, and sixteen restarts relative to
one?

A mixture of K Gaussians with full covariances on N rows of P columns, in double precision and from
the same initial values. One iteration is an E-step and an M-step:

    ours            `GaussianMixture.e_step` and `m_step` as in `fit_em`
    scikit-learn    `_e_step` and `_m_step`, the loop body of its `fit`
    16 restarts     the same as ours, for sixteen restarts at once

Times are interleaved in one process (`timing.interleaved`). The table reports the largest
difference of the likelihoods over five iterations. Restarts share the features of the rows and two
large matrix products (`ppl_lvm.models.parts.mixture_batched_e_step`), which is half of the
arithmetic of sixteen separate restarts and runs at the processor's speed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture as Sklearn
from torch import Tensor

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.speed_suite.timing import interleaved, ratio, spread
from ppl_lvm.core.validate import Count, Seed
from ppl_lvm.data import load_data
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.training.em.statistics import Sums

RESTARTS = 16
SIZES = ((150, 4, 3), (10_000, 8, 8), (100_000, 16, 32))  # N, P, K
SMOKE = ((150, 4, 3), (600, 4, 3))


def clusters(N: int, P: int, K: int) -> Tensor:
    """N rows of K overlapping clusters with different covariances, (N, P)."""
    centers, shapes = 2 * torch.randn(K, P), torch.randn(K, P, P) / P**0.5
    z = torch.randint(K, (N,))
    x = torch.randn(N, P) * 0.3
    for k in range(K):
        x[z == k] += centers[k] + torch.randn(int((z == k).sum()), P) @ shapes[k]
    return x


def initialize(x: Tensor, K: int) -> tuple[GaussianMixture, dict[str, Tensor]]:
    """A mixture, and initial θ from K random rows and the covariance of the data."""
    model = GaussianMixture(K, observed=x.shape[1], floor=1e-9)
    covariance = torch.cov(x.mT)
    weights = torch.full((K,), 1 / K)
    means = x[torch.randperm(len(x))[:K]]
    return model, {"weights": weights, "means": means, "variance": covariance.repeat(K, 1, 1)}


def ours(model: Any, x: Tensor, state: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A function that runs one iteration and returns the previous log-likelihoods (R,)."""
    sums = Sums(model, load_data(x))
    maximize = torch.vmap(model.m_step)

    @torch.no_grad()
    def iterate() -> Tensor:
        nonlocal state
        statistics, log_likelihood = sums.over(state)
        state = maximize(state, statistics)
        return log_likelihood / len(x)

    return iterate


def theirs(x: Tensor, state: dict[str, Tensor]) -> Callable[[], float]:
    """One iteration of scikit-learn; returns the previous mean log-likelihood."""
    mixture = Sklearn(len(state["weights"]), reg_covar=0, max_iter=1)
    mixture.weights_, mixture.means_ = state["weights"].numpy(), state["means"].numpy()
    precision = np.linalg.inv(state["variance"].numpy())
    mixture.precisions_cholesky_ = np.linalg.cholesky(precision)
    mixture.covariances_ = state["variance"].numpy()
    rows = x.numpy()

    def iterate() -> float:
        log_likelihood, log_r = mixture._e_step(rows)
        mixture._m_step(rows, log_r)
        return float(log_likelihood)

    return iterate


def compare(N: int, P: int, K: int, rounds: int, seed: int) -> dict[str, Any]:
    """One row of the table."""
    x = clusters(N, P, K)
    model, state = initialize(x, K)
    one = ours(model, x, {name: t[None].clone() for name, t in state.items()})
    sklearn = theirs(x, state)
    gap = max(abs(float(one()) - sklearn()) for _ in range(5))
    starts = [initialize(x, K)[1] for _ in range(RESTARTS)]
    many = ours(model, x, {name: torch.stack([s[name] for s in starts]) for name in state})
    names = {"ours": one, "scikit-learn": sklearn, f"{RESTARTS} restarts": many}
    times = interleaved(names, rounds=rounds, warmup=1, seed=seed)
    return {
        "N": N,
        "P": P,
        "K": K,
        **{f"{name}, s": spread(values)[0] for name, values in times.items()},
        "ours / scikit-learn": ratio(times, "ours", "scikit-learn")[0],
        f"{RESTARTS} restarts / one": ratio(times, f"{RESTARTS} restarts", "ours")[0],
        "difference in nats per row": gap,
    }


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0, rounds: Count = 7
) -> harness.Result:
    """Seconds per iteration, and ratios, for three problem sizes."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        rows = [
            compare(N, P, K, 2 if smoke else rounds, seed)
            for N, P, K in (SMOKE if smoke else SIZES)
        ]
    finally:
        torch.set_default_dtype(before)
    return harness.publish(
        "em",
        __doc__ or "",
        rows,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        largest_difference=max(row["difference in nats per row"] for row in rows),
        targets={"ours / scikit-learn": 0.5, f"{RESTARTS} restarts / one": 6.0},
    )


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Seconds per iteration, grouped by size."""
    figure, (axes,) = harness.new_figure(7, 4)
    names = [key for key in rows[0] if key.endswith(", s")]
    for i, name in enumerate(names):
        at = np.arange(len(rows)) + 0.27 * (i - 1)
        axes.bar(at, [row[name] for row in rows], 0.25, label=name.removesuffix(", s"))
    sizes = [f"N = {row['N']:,}\nP = {row['P']}, K = {row['K']}" for row in rows]
    axes.set_xticks(range(len(rows)), sizes)
    axes.set(yscale="log", ylabel="seconds per iteration")
    axes.legend()
    return figure


if __name__ == "__main__":
    harness.command(run)
