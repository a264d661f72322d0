"""Posterior and prior predictive checks, and PIT.

Replicated data x_rep have fresh local latents z ~ p(z) and global ones from q. Latents from
q(z | x) would reproduce x whatever the model, because they depend on it.

    test quantity T:   p = P(T(x_rep) > T(x)) + ½ P(T(x_rep) = T(x))
    PIT:               u_np = P(x_rep,np < x_np), ties broken at random, uniform over rows n
    prior check:       the same with global latents from the prior

Checks on rows that the parameters were fitted to are conservative: pass held-out rows.

A value that is missing from the data (NaN) is made missing from every replicate too, so that data
and replicates are compared at observed positions only.

Reference:
    Gelman, Meng, Stern (1996). Posterior predictive assessment of model fitness.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Floats, Program
from ppl_lvm.diagnostics.base import Context, Diagnostic, Quantity
from ppl_lvm.diagnostics.finding import P_VALUE, Finding
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.posterior.simulation import observed_arguments, replicated_data, sequence_lengths

QUESTION = "Does it reproduce the data?"
EXTRA = 4  # times as many replicates follow where the first ones are close to a false positive
MAX_EIGEN = 64  # columns up to which the largest eigenvalue is a test quantity
REMEDY = "The likelihood or the prior does not fit: another family, more components, latents."


def standard_quantities(columns: int, steps: int = 1) -> dict[str, Quantity]:
    """The standard test quantities: functions of data sets (R, N, P) to (R,).

    Missing values (NaN) are the same in all data sets. Of sequences P = steps × columns per step;
    their lag-1 autocorrelation is a quantity too, of values and of squared deviations.
    """
    quantities: dict[str, Quantity] = {
        "mean": lambda x: x.nanmean((1, 2)),
        "sd": lambda x: _sd(x.flatten(1)),
        "sd of row means": lambda x: _sd(x.nanmean(2)),
        "smallest": lambda x: torch.where(x.isnan(), math.inf, x).amin((1, 2)),
        "largest": lambda x: torch.where(x.isnan(), -math.inf, x).amax((1, 2)),
    }
    if columns == 1:
        quantities["skewness"] = lambda x: _skewness(x.flatten(1))
        del quantities["sd of row means"]  # the sd itself
    elif columns <= MAX_EIGEN:
        quantities["largest eigenvalue"] = _largest_eigenvalue
    if steps > 1:
        quantities["lag-1 autocorrelation"] = lambda x: _lag_1_autocorrelation(x, steps, 1)
        quantities["lag-1 autocorrelation of squares"] = lambda x: _lag_1_autocorrelation(
            x, steps, 2
        )
    return quantities


def _sd(x: Tensor) -> Tensor:
    squares = (x - x.nanmean(1, keepdim=True)).square()
    return (squares.nansum(1) / ((~x.isnan()).sum(1) - 1)).sqrt()


def _skewness(x: Tensor) -> Tensor:
    """Skewness; 0 of equal values."""
    centered = x - x.nanmean(1, keepdim=True)
    cube, spread = (centered**3).nanmean(1), (centered**2).nanmean(1) ** 1.5
    return torch.where(spread > 0, cube / spread, 0.0)


def _largest_eigenvalue(x: Tensor) -> Tensor:
    """Largest eigenvalue of the covariance, each entry from the rows that have both columns."""
    observed = (~x[0].isnan()).to(x)  # (N, P)
    centered = (x - x.nanmean(1, keepdim=True)).nan_to_num(0.0)
    covariance = centered.mT @ centered / (observed.mT @ observed).clamp(min=1)
    return torch.linalg.eigvalsh(covariance)[:, -1]


def _lag_1_autocorrelation(x: Tensor, steps: int, power: int) -> Tensor:
    """Lag-1 autocorrelation of each column's deviations to a power, averaged over columns."""
    x = x.unflatten(2, (steps, -1))  # (R, N, T, P)
    d = (x - x.nanmean((1, 2), keepdim=True)) ** power
    observed = ~(d[:, :, 1:] + d[:, :, :-1]).isnan()
    count = observed.sum((1, 2), keepdim=True).clamp(min=1)
    now, later = (t.where(observed, 0.0) for t in (d[:, :, :-1], d[:, :, 1:]))
    now, later = (
        (t - t.sum((1, 2), keepdim=True) / count).where(observed, 0.0) for t in (now, later)
    )
    spread = (now.square().sum((1, 2)) * later.square().sum((1, 2))).sqrt()  # (R, P)
    tiny = torch.finfo(x.dtype).tiny
    return ((now * later).sum((1, 2)) / spread.clamp(min=tiny)).mean(-1)


@dataclass(frozen=True)
class PredictiveCheck:
    """Test quantities and PIT of data among replicates.

    Attributes:
        observed: "site: quantity" -> T(x).
        replicated: "site: quantity" -> T(x_rep) (R,).
        pit: site -> u (N, P), NaN where a value is missing.
        prior: True if global latents came from the prior.
    """

    observed: dict[str, float]
    replicated: dict[str, Floats]
    pit: dict[str, Floats]
    prior: bool = False

    @property
    def p_values(self) -> dict[str, float]:
        """Quantity -> P(T(x_rep) ≥ T(x)), ties counted half."""
        return {
            n: float((t > self.observed[n]).mean() + (t == self.observed[n]).mean() / 2)
            for n, t in self.replicated.items()
        }

    def findings(self) -> list[Finding]:
        worst, corrected = self.worst
        p, R = self.p_values[worst], len(self.replicated[worst])
        verdict = P_VALUE.grade(corrected)
        if self.prior and verdict == "bad":
            verdict = "warning"  # data may overrule a prior that does not fit
        low, high = np.quantile(self.replicated[worst], [0.05, 0.95])
        text = f"two-sided × {len(self.observed)} quantities: {P_VALUE}"
        row = replace(P_VALUE, text=text).finding(
            QUESTION,
            f"{'prior ' * self.prior}predictive check: p-value of the worst test quantity",
            p,
            math.sqrt(p * (1 - p) / R),
            verdict=verdict,
            why=f"{worst} is {self.observed[worst]:.4g}; 90% of {R} replicated data sets have "
            f"{low:.4g} to {high:.4g}.",
            remedy="The prior predicts other data: widen, narrow or shift it."
            if self.prior
            else REMEDY,
        )
        # Under the prior all rows depend on each other through the global latents.
        return [row] if self.prior else [row, *pit_findings(self.pit, "PIT")]

    @property
    def worst(self) -> tuple[str, float]:
        """The quantity with the smallest p-value, and that value two-sided with Bonferroni's
        correction."""
        two_sided = {n: 2 * min(p, 1 - p) for n, p in self.p_values.items()}
        worst = min(two_sided, key=lambda n: two_sided[n])
        return worst, min(1.0, two_sided[worst] * len(two_sided))

    @property
    def borderline(self) -> bool:
        """True if an alarm may be due to too few replicates: the value is near their extremes."""
        worst, corrected = self.worst
        t = self.replicated[worst]
        return corrected < P_VALUE.good and abs(self.observed[worst] - t.mean()) < 6 * t.std()


def pit_findings(pit: Mapping[str, Floats], label: str) -> list[Finding]:
    """One row per site: are u (N, P), NaN left out, uniform in every column?"""
    rows = []
    for name, u in pit.items():
        p = np.array([kolmogorov_smirnov_uniformity(column) for column in u.T])
        bad = int((p * len(p) < P_VALUE.good).sum())
        rows.append(
            replace(P_VALUE, text=f"Bonferroni over {len(p)}: {P_VALUE}").finding(
                QUESTION,
                f"{label} of {name}: p-value of the least uniform column",
                min(1.0, float(p.min()) * len(p)),
                why=f"{bad} of {len(p)} columns have a marginal that the model does not reproduce "
                f"(first: {int(p.argmin())}).",
                remedy=REMEDY,
            )
        )
    return rows


def kolmogorov_smirnov_uniformity(u: Floats) -> float:
    """p-value of the Kolmogorov–Smirnov test of uniformity; 1 where all of `u` (N,) is NaN."""
    from scipy.stats import kstest

    observed = u[~np.isnan(u)]
    return float(kstest(observed, "uniform").pvalue) if len(observed) else 1.0


class _Replication:
    """Test quantities of the data, and running results over replicates."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        batch: tuple[Any, ...],
        quantities: Mapping[str, Quantity],
        prior: bool,
    ) -> None:
        self.model, self.guide, self.batch, self.prior = model, guide, batch, prior
        self.structure = analyze_for_particles(model, guide, batch, {}, 2)
        self.data = {
            n: flatten_rows(batch[i][None]) for n, i in observed_arguments(model, *batch).items()
        }
        steps = sequence_lengths(model, *batch)
        self.quantities = {
            n: _defined(standard_quantities(x.shape[2], steps[n]), x) | dict(quantities)
            for n, x in self.data.items()
        }
        self.replicated: dict[str, list[Tensor]] = {
            f"{n}: {q}": [] for n in self.quantities for q in self.quantities[n]
        }
        self.below = {n: torch.zeros(x.shape[1:]) for n, x in self.data.items()}
        self.tied = {n: torch.zeros(x.shape[1:]) for n, x in self.data.items()}

    def add(self, count: int) -> None:
        """Draw and evaluate `count` replicates."""
        for chunk in replicated_data(
            self.model, self.guide, self.batch, self.structure, count, self.prior
        ):
            for name, values in chunk.items():
                x_rep = mask_missing(flatten_rows(values), self.data[name])
                for q, T in self.quantities[name].items():
                    self.replicated[f"{name}: {q}"].append(_evaluate(T, x_rep, q))
                self.below[name] += (x_rep < self.data[name]).sum(0)
                self.tied[name] += (x_rep == self.data[name]).sum(0)

    def observed(self) -> dict[str, float]:
        return {
            f"{n}: {q}": float(_evaluate(T, self.data[n], q)[0])
            for n in self.quantities
            for q, T in self.quantities[n].items()
        }

    def check(self, observed: dict[str, float], count: int) -> PredictiveCheck:
        """The check by all `count` replicates so far."""
        replicated = {n: torch.cat(t).double().numpy() for n, t in self.replicated.items()}
        u = {
            n: (b + torch.rand(b.shape) * (self.tied[n] + 1)) / (count + 1)
            for n, b in self.below.items()
        }
        u = {n: mask_missing(values, self.data[n][0]) for n, values in u.items()}
        pit = {n: v.double().numpy() for n, v in u.items()}
        return PredictiveCheck(observed, replicated, pit, self.prior)


def predictive_check(
    model: Program,
    guide: Program,
    *batch: Any,
    quantities: Mapping[str, Quantity] | None = None,
    num_replicates: int = 999,
    prior: bool = False,
    seed: int = 0,
) -> PredictiveCheck:
    """Test quantities and PIT of `batch` among replicated data.

    Where the first replicates would raise an alarm near their extremes, four times as many follow.

    Args:
        quantities: further test quantities, name -> a function of data sets (R, N, P) to (R,);
            missing values of the data are NaN.
        prior: draw global latents from the prior too (prior predictive check).

    Raises:
        CannotSayError: data cannot be simulated from the model.
        ValueError: a test quantity does not return one value per data set.
    """
    with isolated_rng(seed), torch.no_grad():
        replication = _Replication(model, guide, batch, quantities or {}, prior)
        observed = replication.observed()
        replication.add(num_replicates)
        check = replication.check(observed, num_replicates)
        if not check.borderline:
            return check
        replication.add(EXTRA * num_replicates)
        return replication.check(observed, (1 + EXTRA) * num_replicates)


def _defined(quantities: dict[str, Quantity], x: Tensor) -> dict[str, Quantity]:
    """Those that data sets of the shape of x (1, N, P) have: one value has no sd."""
    return {name: T for name, T in quantities.items() if not T(x).isnan().any()}


def _evaluate(quantity: Quantity, x: Tensor, name: str) -> Tensor:
    """T (R,) of data sets (R, N, P).

    Raises:
        ValueError: the quantity returns another shape, or NaN.
    """
    value = quantity(x)
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        returned = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"The test quantity '{name}' must map data sets (R, N, P) = {tuple(x.shape)} to "
            f"({len(x)},), one value each; it returned {returned}."
        )
    if value.isnan().any():
        raise ValueError(
            f"The test quantity '{name}' gives NaN. Values that are missing from the data are NaN "
            "here: use torch.nanmean and similar functions."
            if x.isnan().any()
            else f"The test quantity '{name}' gives NaN on data without a missing value."
        )
    return value


def mask_missing(x_rep: Tensor, x: Tensor) -> Tensor:
    """Replicates (..., N, P) with NaN where the data `x` have it."""
    return torch.where(x.isnan(), math.nan, x_rep)


def flatten_rows(x: Tensor) -> Tensor:
    """(R, N, ...) as floating-point (R, N, P)."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.reshape(*x.shape[:2], -1)


def _run_check(context: Context, prior: bool) -> PredictiveCheck:
    return predictive_check(
        context.model,
        context.guide,
        *context.rows,
        quantities=context.quantities,
        prior=prior,
        seed=context.seed,
    )


POSTERIOR_PREDICTIVE = Diagnostic(
    slug="predictive",
    question=QUESTION,
    title="predictive checks",
    run=lambda c: _run_check(c, prior=False),
)
PRIOR_PREDICTIVE = Diagnostic(
    slug="prior",
    question=QUESTION,
    title="prior predictive checks",
    run=lambda c: _run_check(c, prior=True),
    applies=lambda c: c.budget.joint,
)
