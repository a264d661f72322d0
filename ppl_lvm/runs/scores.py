"""Log densities of rows by one run, with errors."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Floats
from ppl_lvm.data import Data
from ppl_lvm.data.weights import repeat_rows
from ppl_lvm.diagnostics.bound_tightness import exact_log_likelihood
from ppl_lvm.diagnostics.leave_one_out import loo
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.posterior import psis
from ppl_lvm.posterior.conditional_density import predictive_densities
from ppl_lvm.posterior.evidence import (
    MOST_ROWS,
    num_latent_values,
    shares_latents,
    standard_error,
)
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.runs.comparability import NotComparableError
from ppl_lvm.runs.rows import batches
from ppl_lvm.runs.run import Run

CHUNK = 200_000  # log weights computed at once
UNRELIABLE = 0.05  # share of rows with a high k̂ above which leave-one-out is omitted


@dataclass(frozen=True, kw_only=True)
class Score:
    """The log densities of one run on the compared rows.

    Attributes:
        name: of the run.
        per_row: l_n (N,), nats.
        weights: of the rows (N,); None if all are equal.
        monte_carlo_error: of its mean.
        kind: "exact", "lower bound" or "predictive".
        share_bad: share of rows whose weights have Pareto k̂ > 0.7, where l_n is too low and its
            error unknown; 0 without weights.
        loo: leave-one-out on the training rows; None where it does not apply.
        no_loo: the reason why it is omitted although there are global latents, else empty.
        parameters: number of trained parameter entries.
        seconds: training time of all restarts together.
        steps: of the chosen restart.
    """

    name: str
    per_row: Floats
    weights: Floats | None = None
    monte_carlo_error: float = 0.0
    kind: str = "exact"
    share_bad: float = 0.0
    loo: psis.Loo | None = None
    no_loo: str = ""
    parameters: int
    seconds: float
    steps: int

    @property
    def value(self) -> float:
        """Mean over rows, nats per row."""
        return float(np.average(self.per_row, weights=self.weights))

    @property
    def reliable(self) -> bool:
        """True unless k̂ > 0.7 for most rows."""
        return self.share_bad <= MOST_ROWS

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows, with the Monte-Carlo error; NaN if unreliable."""
        if not self.reliable:
            return math.nan
        return math.hypot(mean_error(self.per_row, self.weights), self.monte_carlo_error)


def score(
    name: str,
    run: Run,
    data: Data,
    K: int,
    seed: int,
    loo_seed: int,
) -> Score:
    """The score of one run on rows, with K particles.

    Raises:
        NotComparableError: log p(x) has no terms by row.
    """
    pair = run.pair
    with isolated_rng(seed), torch.no_grad(), pair.scope():
        try:
            l, noise, kind, share_bad = _all_densities(run, pair, data, K)
        except CannotSayError as error:
            raise NotComparableError(f"{name}: {error}") from error
        loo_result, no_loo = None, ""
        if kind == "predictive":
            loo_result, no_loo = _leave_one_out(run, pair, loo_seed)
    return Score(
        name=name,
        per_row=l,
        weights=None if data.weights is None else data.weights.double().cpu().numpy(),
        monte_carlo_error=noise,
        kind=kind,
        share_bad=share_bad,
        loo=loo_result,
        no_loo=no_loo,
        parameters=sum(leaf.numel() for leaf in pair.unconstrained_parameters.values()),
        seconds=_seconds(run),
        steps=int(run.results["steps"]),
    )


def _all_densities(
    run: Run, pair: ModelGuidePair, data: Data, K: int
) -> tuple[Floats, float, str, float]:
    """`_densities` of the batches of the rows, joined."""
    parts, totals = [], []
    for batch, weights in batches(pair, data):
        parts.append(_densities(run, pair, batch, K, weights))
        totals.append(float(len(batch[0])) if weights is None else float(weights.sum()))
    densities, noises, kinds, shares = zip(*parts, strict=True)
    share = np.array(totals) / sum(totals)
    sizes = [len(part) for part in densities]
    noise = math.hypot(*(share * noises))
    return np.concatenate(densities), noise, kinds[0], float(np.average(shares, weights=sizes))


def _densities(
    run: Run, pair: ModelGuidePair, batch: tuple[Tensor, ...], K: int, weights: Tensor | None
) -> tuple[Floats, float, str, float]:
    """l (N,), Monte-Carlo error of its mean, kind of value, share of rows with high k̂."""
    N = len(batch[0])
    w = np.ones(N) if weights is None else weights.double().cpu().numpy()
    if shares_latents(pair, *batch):
        # q(θ) of the training rows: a guide that reads data must not read the compared rows.
        densities, nothing_drawn = predictive_densities(
            pair,
            run.training_rows(),
            batch,
            K,
            weights=weights,
            training_weights=run.training_weights(),
        )
        log_w, kind = densities.log_lik, "predictive"
        noise = psis.shared_draws_error(log_w.T, w)
    else:
        exact = exact_log_likelihood(pair.model, batch)
        if exact is None and num_latent_values(pair, *batch) == 0:
            exact = log_weights(pair.model, pair.guide, *batch, num_particles=1).double()[0]
        if exact is not None and len(exact) != N:
            raise CannotSayError("log p(x) has no terms by row: no plate is over the rows.")
        if exact is not None:
            return exact.numpy(), 0.0, "exact", 0.0
        chunk = max(2, CHUNK // N)
        structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 2)
        draw = partial(log_weights, pair.model, pair.guide, *batch, structure=structure)
        parts = [draw(num_particles=min(chunk, K - start)) for start in range(0, K, chunk)]
        log_w, kind, nothing_drawn = torch.cat(parts).double(), "lower bound", False
        noise = psis.draws_error(log_w.T, w)
    k = psis.k_hat(log_w.T, nothing_drawn)
    l = log_w.logsumexp(0) - math.log(len(log_w))
    return l.numpy(), noise, kind, float((k > psis.RELIABLE_K_HAT).mean())


def _leave_one_out(run: Run, pair: ModelGuidePair, seed: int) -> tuple[psis.Loo | None, str]:
    """Leave-one-out on the training rows, or the reason why it is not valid."""
    try:
        train = run.batch(repeat_rows(run.data()[0], "leave-one-out"))
        result = loo(pair.model, pair.guide, *train, seed=seed).loo
    except (ValueError, FileNotFoundError) as error:
        return None, f"its training rows cannot be loaded: {error}".rstrip(".")
    share = float((result.k > result.good_k).mean())
    return (result, "") if share <= UNRELIABLE else (None, f"k̂ too high for {share:.0%} of rows")


def _seconds(run: Run) -> float:
    """Training time of all restarts; those of EM are iterated together."""
    seconds = [float(entry["seconds"]) for entry in run.restarts]
    return max(seconds) if "algorithm" in run.record else sum(seconds)


def mean_error(x: Floats, weights: Floats | None = None) -> float:
    """Standard error of the mean of (N,) values, repeated w_n times."""
    w = None if weights is None else torch.from_numpy(weights)
    return standard_error(torch.from_numpy(x), w)
