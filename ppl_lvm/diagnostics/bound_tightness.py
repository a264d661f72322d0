"""Tightness of the bound: IWAE-K, AIS and BDMC.

    ELBO ≤ IWAE-K ≤ AIS ≤ log p(x)

    IWAE-K:  L_n = log 1/K Σ_k w_nk, rising with K towards log p(x_n);
    AIS:     annealed importance sampling from q, a stochastic lower bound, usually far tighter;
    BDMC:    bidirectional Monte Carlo on data simulated from the model, which come with an exact
             posterior draw: a sandwich  lower ≤ log p(x) ≤ upper  whose width certifies the AIS.

The sandwich holds for simulated data; that it carries over to real data is an assumption (the
model fits them). Where the model computes log p(x) exactly (`model.log_likelihood(*batch)`, (N,)),
that value is used and the AIS estimate is compared with it.

References:
    Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519
    Wu, Burda, Salakhutdinov, Grosse (2017). https://arxiv.org/abs/1611.04273
    Grosse, Ghahramani, Adams (2015). https://arxiv.org/abs/1511.02543
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.amortization import require_amortized
from ppl_lvm.diagnostics.annealing import adapt, backward, forward, sigmoid_temperatures
from ppl_lvm.diagnostics.base import Context, Diagnostic
from ppl_lvm.diagnostics.budget import evenly_spaced_rows
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.diagnostics.invalid_parameters import locate_invalid_parameters
from ppl_lvm.diagnostics.unconstrained_density import UnconstrainedDensity, log_mean_exp
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.posterior.evidence import standard_error
from ppl_lvm.posterior.simulation import simulate

QUESTION = "How tight is the bound?"
PARTICLES = (1, 10, 100, 1000)
CHUNK = 200_000  # log-weights computed at once

GAP = Threshold(good=0.5, bad=3.0)
EXACT = Threshold(
    good=0.05,
    bad=0.5,
    text="good within ± 0.05, bad beyond ± 0.5, both ± 3 standard errors",
)
WIDTH = Threshold(
    good=0.1,
    bad=0.5,
    source=f"{PROJECT_DEFAULT}, after Grosse et al. 2015, arXiv:1511.02543",
)


@dataclass(frozen=True)
class Estimate:
    """An estimate of log p(x), nats per row.

    Attributes:
        per_row: (N,), or (1,) the joint value divided by N where latents are global.
        monte_carlo_error: error of the mean from the draws.
    """

    per_row: Tensor
    monte_carlo_error: float

    @property
    def value(self) -> float:
        return float(self.per_row.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows; NaN for a single value."""
        return standard_error(self.per_row)


@dataclass(frozen=True)
class Sandwich:
    """Bounds lower ≤ log p(x) ≤ upper on simulated data, nats per row."""

    lower: Estimate
    upper: Estimate

    @property
    def gap(self) -> float:
        return self.upper.value - self.lower.value

    @property
    def error(self) -> float:
        """Standard error of the gap over rows; Monte-Carlo error for a single value."""
        difference = self.upper.per_row - self.lower.per_row
        if len(difference) > 1:
            return standard_error(difference)
        return math.hypot(self.lower.monte_carlo_error, self.upper.monte_carlo_error)

    def findings(self) -> list[Finding]:
        rows = len(self.lower.per_row)
        return [
            WIDTH.finding(
                QUESTION,
                "sandwich on simulated data: upper − lower, nats",
                self.gap,
                self.error,
                why=f"log p(x) of data drawn from the model lies in [{self.lower.value:.3f}, "
                f"{self.upper.value:.3f}]" + (f", {rows} rows." if rows > 1 else "."),
                remedy="Raise `temperatures`; until then no log p(x) is reliable.",
            )
        ]


@dataclass(frozen=True)
class Tightness:
    """Lower bounds on log p(x) of one batch.

    Attributes:
        bounds: K -> IWAE-K (K = 1: the ELBO).
        annealed: the AIS estimate; None where it is unavailable (`unavailable` is the reason).
        exact: log p(x) (N,) from the model; None where the model does not compute it.
        acceptance: mean acceptance rate of the Hamiltonian transitions.
        temperatures: number of temperatures of the annealing.
        trained_particles: K of the bound that the fit maximized; 1: the ELBO.
    """

    bounds: dict[int, Estimate]
    annealed: Estimate | None
    exact: Tensor | None
    acceptance: float
    unavailable: str | None = None
    temperatures: int = 0
    trained_particles: int = 1

    @property
    def best(self) -> Tensor:
        """The exact value, or the lower bound with the highest mean: (N,)."""
        if self.exact is not None:
            return self.exact
        lower = [e.per_row for e in self.bounds.values()]
        if self.annealed is not None:
            lower.append(self.annealed.per_row)
        return max(lower, key=lambda l: float(l.mean()))

    def gap(self) -> tuple[float, float]:
        """log p(x) less the bound that was maximized, nats per row; its paired error over rows."""
        bound = self.bounds[self.trained_particles]
        difference = self.best - bound.per_row
        error = standard_error(difference) if len(difference) > 1 else bound.monte_carlo_error
        return float(difference.mean()), error

    def findings(self) -> list[Finding]:
        gap, error = self.gap()
        source = "exact" if self.exact is not None else "best lower bound"
        K = self.trained_particles
        bound = "ELBO" if K == 1 else f"IWAE-{K}"
        rows = [
            GAP.finding(
                QUESTION,
                f"log p(x) ({source}) − {bound}, nats per row",
                gap,
                error,
                why="; ".join(f"IWAE-{K}: {e.value:.3f}" for K, e in self.bounds.items())
                + (self._annealing_text if self.annealed else "")
                + "."
                + (" A fit by several particles leaves the ELBO loose." if K > 1 else ""),
                remedy="A richer guide, or train with IWAE or Rényi bounds.",
            )
        ]
        if self.exact is not None and self.annealed is not None:
            rows.append(self._exact_finding())
        elif self.annealed is None and self.unavailable is not None:
            rows.append(
                Finding(
                    question=QUESTION,
                    name="AIS",
                    why=self.unavailable,
                    verdict="unknown" if self.exact is None else "not applicable",
                )
            )
        return rows

    @property
    def _annealing_text(self) -> str:
        assert self.annealed is not None
        num_rows = len(self.annealed.per_row)
        rows = f"{num_rows} rows, " if num_rows > 1 else ""
        return f"; AIS: {self.annealed.value:.3f} ({rows}{self.temperatures} temperatures)"

    def _exact_finding(self) -> Finding:
        assert self.annealed is not None
        assert self.exact is not None
        difference = float((self.annealed.per_row - self.exact).mean())
        error = self.annealed.monte_carlo_error
        return EXACT.finding(
            QUESTION,
            "AIS − exact log p(x), nats per row",
            difference,
            error,
            graded=max(abs(difference) - 3 * error, 0.0),
            why="The estimate against the exact value from the model.",
            remedy="Raise `temperatures`.",
        )


def tightness(
    model: Program,
    guide: Program,
    *batch: Any,
    particles: Sequence[int] = PARTICLES,
    temperatures: int = 100,
    chains: int = 8,
    seed: int = 0,
) -> Tightness:
    """IWAE-K for growing K, and AIS with T = `temperatures` steps of C = `chains` chains.

    Raises:
        CannotSayError: the guide has no latents, so that the bound is log p(x) itself.
    """
    with isolated_rng(seed):
        bounds = iwae(model, guide, *batch, particles=particles)
        exact = exact_log_likelihood(model, batch)
        try:
            density = UnconstrainedDensity(model, guide, *batch)
        except CannotSayError as error:
            return Tightness(bounds, None, exact, math.nan, str(error))
        schedule = adapt(density, sigmoid_temperatures(temperatures), chains)
        annealed = _estimate(forward(density, schedule, chains), len(batch[0]))
    acceptance = float(schedule.acceptance.mean())
    return Tightness(bounds, annealed, exact, acceptance, temperatures=temperatures)


def sandwich(
    model: Program,
    guide: Program,
    *batch: Any,
    temperatures: int = 100,
    chains: int = 8,
    seed: int = 0,
) -> Sandwich:
    """Bidirectional Monte Carlo on as many simulated rows as `batch` has.

    Raises:
        CannotSayError: as `UnconstrainedDensity`, `simulate` and `require_amortized` do.
    """
    with isolated_rng(seed):
        structure = analyze_for_particles(model, guide, batch, {}, 2)
        if not structure.latents:
            raise CannotSayError(
                "The guide draws nothing: the bound is log p(x) itself.", verdict="exact"
            )
        require_amortized(model, guide, batch, structure)
        values, simulated = simulate(model, *batch)
        with locate_invalid_parameters(model, guide, batch, simulated):
            density = UnconstrainedDensity(model, guide, *simulated)
        posterior = density.flatten({name: values[name][None] for name in density.parts})
        schedule = adapt(density, sigmoid_temperatures(temperatures), chains)
        lower = _estimate(forward(density, schedule, chains), len(batch[0]))
        upper = _estimate(-backward(density, schedule, posterior, chains), len(batch[0]))
    return Sandwich(lower, Estimate(-upper.per_row, upper.monte_carlo_error))


def iwae(
    model: Program, guide: Program, *batch: Any, particles: Sequence[int] = PARTICLES
) -> dict[int, Estimate]:
    """K -> IWAE-K from one pool of max(K) draws, cut into groups of K: the values are paired."""
    pool = max(particles)
    N = len(batch[0])
    structure = analyze_for_particles(model, guide, batch, {}, pool)
    if not structure.latents:
        raise CannotSayError(
            "The guide draws nothing: the bound is log p(x) itself.", verdict="exact"
        )
    chunk = max(1, CHUNK // N)
    parts = [
        log_weights(
            model, guide, *batch, num_particles=min(chunk, pool - start), structure=structure
        )
        for start in range(0, pool, chunk)
    ]
    log_w = torch.cat(parts).double()  # (K, N) or (K, 1)
    scale = N if log_w.shape[1] == 1 else 1
    estimates = {}
    for K in sorted(particles):
        groups = log_w[: pool // K * K].reshape(-1, K, log_w.shape[1])
        bounds = groups.logsumexp(1) - math.log(K)  # (groups, N)
        if len(bounds) > 1:
            error = float((bounds.var(0) / len(bounds)).sum().sqrt()) / bounds.shape[1]
        else:
            error = delta_error(log_w)
        estimates[K] = Estimate(bounds.mean(0) / scale, error / scale)
    return estimates


def delta_error(log_w: Tensor) -> float:
    """Monte-Carlo error of 1/N Σ_n log-mean-exp of weights (K, N), by the delta method."""
    weights = log_w.softmax(0)
    variance = (weights.square().sum(0) - 1 / len(log_w)).clamp(min=0)  # cv²/K
    return float(variance.sum().sqrt()) / log_w.shape[1]


def _estimate(log_w: Tensor, N: int) -> Estimate:
    scale = N if log_w.shape[1] == 1 else 1
    return Estimate(log_mean_exp(log_w) / scale, delta_error(log_w) / scale)


def exact_log_likelihood(model: Program, batch: Batch) -> Tensor | None:
    """log p(x_n) (N,) by the model's method `log_likelihood(*batch)`; None if it has none."""
    method = getattr(model, "log_likelihood", None)
    if not callable(method):
        return None
    with torch.no_grad():
        value = method(*batch)
    per_row = isinstance(value, Tensor) and value.shape == (len(batch[0]),)
    return value.double() if per_row else None


def _run_tightness(context: Context) -> Tightness:
    K = context.particles_of_bound
    result = tightness(
        context.model,
        context.guide,
        *context.annealing_rows,
        particles=sorted({*PARTICLES, K}),
        temperatures=context.temperatures,
        seed=context.seed,
    )
    return replace(result, trained_particles=K)


def _run_sandwich(context: Context) -> Sandwich:
    rows = context.annealing_rows
    if not context.budget.joint:
        rows = evenly_spaced_rows(rows, context.budget.simulated_rows)
    return sandwich(
        context.model,
        context.guide,
        *rows,
        temperatures=context.temperatures,
        seed=context.seed,
    )


TIGHTNESS = Diagnostic(
    slug="tightness", question=QUESTION, title="gap between ELBO and log p(x)", run=_run_tightness
)
SANDWICH = Diagnostic(
    slug="sandwich",
    question=QUESTION,
    title="sandwich on simulated data",
    run=_run_sandwich,
    spoils=("density",),
)
