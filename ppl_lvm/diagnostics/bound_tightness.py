"""How tight is the bound? ELBO ≤ IWAE-K ≤ … ≤ AIS ≤ log p(x), and an upper bound beside them.

    IWAE-K:  L_n = log 1/K Σ_k w_nk, rising with K towards log p(x_n);
    AIS:     annealed importance sampling from q, a stochastic lower bound, mostly far tighter;
    BDMC:    on data simulated from the model, where an exact posterior draw is at hand, a
             sandwich  lower ≤ log p(x) ≤ upper  whose width certifies the AIS.

The sandwich holds for simulated data; that it carries over to real ones is an assumption (the
model fits them). Where the model knows log p(x) itself (`model.log_likelihood(*batch)`, (N,)),
that value is used and the estimate has to meet it.

References:
    Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519
    Wu, Burda, Salakhutdinov, Grosse (2017). https://arxiv.org/abs/1611.04273
    Grosse, Ghahramani, Adams (2015). https://arxiv.org/abs/1511.02543
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.amortization import require_amortized
from ppl_lvm.diagnostics.annealing import (
    Schedule,
    adapt,
    backward,
    forward,
    sigmoid_temperatures,
)
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.diagnostics.invalid_parameters import on_simulated
from ppl_lvm.diagnostics.unconstrained_density import UnconstrainedDensity, log_mean
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.structure import Program
from ppl_lvm.posterior.simulation import simulate

QUESTION = "How tight is the bound?"
PARTICLES = (1, 10, 100, 1000)
CHUNK = 200_000


@dataclass(frozen=True)
class Estimate:
    """Of log p(x), nats per row.

    Attributes:
        per_row: (N,), or (1,) the joint value divided by N where latents are global.
        monte_carlo_error: of the mean, from the draws.
    """

    per_row: Tensor
    monte_carlo_error: float

    @property
    def value(self) -> float:
        return float(self.per_row.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean over data; NaN for a single value."""
        N = len(self.per_row)
        return float(self.per_row.std() / math.sqrt(N)) if N > 1 else math.nan


@dataclass(frozen=True)
class Sandwich:
    """lower ≤ log p(x) ≤ upper on simulated data, nats per row."""

    lower: Estimate
    upper: Estimate

    @property
    def gap(self) -> float:
        return self.upper.value - self.lower.value

    @property
    def error(self) -> float:
        """Standard error of the gap over data; Monte-Carlo error for a single value."""
        difference = self.upper.per_row - self.lower.per_row
        if len(difference) > 1:
            return float(difference.std() / math.sqrt(len(difference)))
        return math.hypot(self.lower.monte_carlo_error, self.upper.monte_carlo_error)

    def findings(self) -> list[Finding]:
        gap, rows = max(self.gap, 0.0), len(self.lower.per_row)
        return [
            Finding(
                QUESTION,
                "sandwich on simulated data: upper − lower, nats",
                self.gap,
                self.error,
                "good ≤ 0.1, bad > 0.5",
                f"{PROJECT_DEFAULT}, after Grosse et al. 2015, arXiv:1511.02543",
                graded(gap, 0.1, 0.5),
                f"log p(x) of data drawn from the model lies in [{self.lower.value:.3f}, "
                f"{self.upper.value:.3f}]" + (f", {rows} rows." if rows > 1 else "."),
                "" if gap <= 0.1 else "Raise `temperatures`; until then trust no log p(x).",
            )
        ]


@dataclass(frozen=True)
class Tightness:
    """Attributes:
    bounds: K -> IWAE-K (K = 1: the ELBO).
    annealed: the AIS estimate; None where it cannot be had (`why_not` says why).
    exact: log p(x) (N,) from the model; None where it offers none.
    acceptance: mean acceptance of the Hamiltonian transitions.
    temperatures: of the annealing.
    """

    bounds: dict[int, Estimate]
    annealed: Estimate | None
    exact: Tensor | None
    acceptance: float
    why_not: str | None = None
    temperatures: int = 0

    @property
    def best(self) -> Tensor:
        """The highest of the lower bounds in the mean, or the exact value: (N,)."""
        if self.exact is not None:
            return self.exact
        lower = [e.per_row for e in self.bounds.values()]
        if self.annealed is not None:
            lower.append(self.annealed.per_row)
        return max(lower, key=lambda l: float(l.mean()))

    def gap(self) -> tuple[float, float]:
        """log p(x) − ELBO in nats per row, and its standard error over data (paired)."""
        elbo = self.bounds[min(self.bounds)]
        difference = self.best - elbo.per_row
        N = len(difference)
        spread = float(difference.std() / math.sqrt(N)) if N > 1 else elbo.monte_carlo_error
        return float(difference.mean()), spread

    def findings(self) -> list[Finding]:
        gap, error = self.gap()
        source = "exact" if self.exact is not None else "best lower bound"
        rows = [
            Finding(
                QUESTION,
                f"log p(x) ({source}) − ELBO, nats per row",
                gap,
                error,
                "good ≤ 0.5, bad > 3",
                PROJECT_DEFAULT,
                graded(gap, 0.5, 3.0),
                "; ".join(f"IWAE-{K}: {e.value:.3f}" for K, e in self.bounds.items())
                + (self._annealing if self.annealed else "")
                + ".",
                "" if gap <= 0.5 else "A richer guide, or train with IWAE or Rényi bounds.",
            )
        ]
        if self.exact is not None and self.annealed is not None:
            rows.append(self._meets_exact())
        elif self.annealed is None and self.why_not is not None:
            rows.append(Finding(QUESTION, "AIS", None, None, "", "", "unknown", self.why_not, ""))
        return rows

    @property
    def _annealing(self) -> str:
        assert self.annealed is not None
        rows = len(self.annealed.per_row)
        said = f"{rows} rows, " if rows > 1 else ""
        return f"; AIS: {self.annealed.value:.3f} ({said}{self.temperatures} temperatures)"

    def _meets_exact(self) -> Finding:
        assert self.annealed is not None
        assert self.exact is not None
        miss = float((self.annealed.per_row - self.exact).mean())
        error = self.annealed.monte_carlo_error
        return Finding(
            QUESTION,
            "AIS − exact log p(x), nats per row",
            miss,
            error,
            "good ≤ 0.05, bad > 0.5",
            PROJECT_DEFAULT,
            graded(max(abs(miss) - 3 * error, 0.0), 0.05, 0.5),
            "The estimator measured against the value that the model itself offers.",
            "" if abs(miss) <= 0.05 else "Raise `temperatures`.",
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
    """IWAE-K for growing K and AIS with `temperatures` = T steps of `chains` = C chains.

    Raises:
        CannotSayError: the guide draws nothing, so that the bound is log p(x) itself.
    """
    with isolated_rng(seed):
        bounds = iwae(model, guide, *batch, particles=particles)
        exact = exact_log_likelihood(model, batch)
        try:
            joint = UnconstrainedDensity(model, guide, *batch)
        except CannotSayError as error:
            return Tightness(bounds, None, exact, math.nan, str(error))
        schedule = adapt(joint, sigmoid_temperatures(temperatures), chains)
        annealed = _estimate(forward(joint, schedule, chains), len(batch[0]))
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
        CannotSayError: as `Joint`, `simulate` and `require_amortized` do.
    """
    with isolated_rng(seed):
        plan = analyze_for_particles(model, guide, batch, {}, 2)
        if not plan.latents:
            raise CannotSayError("The guide draws nothing: the bound is log p(x) itself.")
        require_amortized(model, guide, batch, plan)
        values, fresh = simulate(model, *batch)
        with on_simulated(model, guide, batch, fresh):
            joint = UnconstrainedDensity(model, guide, *fresh)
        posterior = joint.flatten({name: values[name][None] for name in joint.parts})
        schedule: Schedule = adapt(joint, sigmoid_temperatures(temperatures), chains)
        lower = _estimate(forward(joint, schedule, chains), len(batch[0]))
        upper = _estimate(-backward(joint, schedule, posterior, chains), len(batch[0]))
    return Sandwich(lower, Estimate(-upper.per_row, upper.monte_carlo_error))


def iwae(
    model: Program, guide: Program, *batch: Any, particles: Sequence[int] = PARTICLES
) -> dict[int, Estimate]:
    """K -> IWAE-K from one pool of max(K) draws, cut into groups of K: the values are paired."""
    most = max(particles)
    N = len(batch[0])
    plan = analyze_for_particles(model, guide, batch, {}, most)
    if not plan.latents:
        raise CannotSayError("The guide draws nothing: the bound is log p(x) itself.")
    chunk = max(1, CHUNK // N)
    parts = [
        log_weights(model, guide, *batch, num_particles=min(chunk, most - start), structure=plan)
        for start in range(0, most, chunk)
    ]
    log_w = torch.cat(parts).double()  # (K, N) or (K, 1)
    share = N if log_w.shape[1] == 1 else 1
    found = {}
    for K in sorted(particles):
        groups = log_w[: most // K * K].reshape(-1, K, log_w.shape[1])
        each = groups.logsumexp(1) - math.log(K)  # (groups, N)
        if len(each) > 1:
            error = float((each.var(0) / len(each)).sum().sqrt()) / each.shape[1]
        else:
            error = delta_error(log_w)
        found[K] = Estimate(each.mean(0) / share, error / share)
    return found


def delta_error(log_w: Tensor) -> float:
    """Monte-Carlo error of 1/N Σ_n log-mean-exp of weights (K, N), by the delta method."""
    share = log_w.softmax(0)
    variance = (share.square().sum(0) - 1 / len(log_w)).clamp(min=0)  # cv²/K
    return float(variance.sum().sqrt()) / log_w.shape[1]


def _estimate(log_w: Tensor, N: int) -> Estimate:
    share = N if log_w.shape[1] == 1 else 1
    return Estimate(log_mean(log_w) / share, delta_error(log_w) / share)


def exact_log_likelihood(model: Program, batch: tuple[Any, ...]) -> Tensor | None:
    """log p(x_n) (N,) from the model's own `log_likelihood(*batch)`; None where it has none."""
    method = getattr(model, "log_likelihood", None)
    if not callable(method):
        return None
    with torch.no_grad():
        value = method(*batch)
    known = isinstance(value, Tensor) and value.shape == (len(batch[0]),)
    return value.double() if known else None
