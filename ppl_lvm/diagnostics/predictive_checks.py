"""Posterior and prior predictive checks, and PIT.

Replicated data x_rep have fresh local latents z ~ p(z) and global ones from q. Latents from
q(z | x) would reproduce x whatever the model, because they depend on it.

    test quantity T:   p = P(T(x_rep) > T(x)) + ½ P(T(x_rep) = T(x))
    of columns T_p:    the same with max_p |T_p − mean of T_p(x_rep)| / sd of T_p(x_rep)
    PIT:               u_np = P(x_rep,np < x_np), ties broken at random, uniform over rows n
    prior check:       the same with global latents from the prior

Checks on rows that the parameters were fitted to are conservative: pass held-out rows.

A value that is missing from the data (NaN) is made missing from every replicate too, so that data
and replicates are compared at observed positions only.

Reference:
    Gelman, Meng, Stern (1996). Posterior predictive assessment of model fitness.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Floats, Program
from ppl_lvm.diagnostics.base import Context, Diagnostic, Quantity
from ppl_lvm.diagnostics.finding import P_VALUE, Finding
from ppl_lvm.diagnostics.quantities import column_index, location_and_scale, standard_quantities
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.posterior.simulation import observed_arguments, replicated_data, sequence_lengths

FEWEST_ROWS = 20  # of a PIT
QUESTION = "Does it reproduce the data?"
EXTRA = 4  # times as many replicates follow where the first ones are close to a false positive
REMEDY = "The likelihood or the prior does not fit: another family, more components, latents."


@dataclass(frozen=True)
class PredictiveCheck:
    """Test quantities and PIT of data among replicates.

    A quantity of each column is that of the column that deviates most from its replicates.

    Attributes:
        observed: "site: quantity" -> T(x).
        replicated: "site: quantity" -> T(x_rep) (R,).
        pit: site -> u (N, P), NaN where a value is missing.
        prior: True if global latents came from the prior.
        of_columns: "site: quantity" of each column -> the column, and the p-value of the largest
            deviation over columns, in sd of the replicates.
        columns: names of the columns of the PIT, by site; empty where they have none.
    """

    observed: dict[str, float]
    replicated: dict[str, Floats]
    pit: dict[str, Floats]
    prior: bool = False
    of_columns: dict[str, tuple[str, float]] = field(default_factory=dict)
    columns: dict[str, Sequence[str]] = field(default_factory=dict)

    @property
    def p_values(self) -> dict[str, float]:
        """Quantity -> P(T(x_rep) ≥ T(x)), ties counted half."""
        return {
            n: float((t > self.observed[n]).mean() + (t == self.observed[n]).mean() / 2)
            for n, t in self.replicated.items()
        }

    @property
    def corrected(self) -> dict[str, float]:
        """Quantity -> p-value that is graded: two-sided, Bonferroni-corrected over quantities."""
        two_sided = {n: 2 * min(p, 1 - p) for n, p in self.p_values.items()}
        two_sided |= {n: p for n, (_, p) in self.of_columns.items()}
        return {n: min(1.0, p * len(two_sided)) for n, p in two_sided.items()}

    def label(self, name: str) -> str:
        """A quantity with its column: "x: mean of petal width"."""
        column = self.of_columns.get(name, ("", 0.0))[0]
        return f"{name} of {column}" if column else name

    def findings(self) -> list[Finding]:
        worst, corrected = self.worst
        count, R = len(self.observed), len(self.replicated[worst])
        verdict = P_VALUE.grade(corrected)
        if self.prior and verdict == "bad":
            verdict = "warning"  # data may overrule a prior that does not fit
        low, high = np.quantile(self.replicated[worst], [0.05, 0.95])
        single = corrected / count
        text = f"two-sided, Bonferroni over {count} quantities: {P_VALUE}"
        row = replace(P_VALUE, text=text).finding(
            QUESTION,
            f"{'prior ' * self.prior}predictive check: p-value of the worst test quantity",
            corrected,
            count * math.sqrt(single * (1 - single) / R) if corrected < 1 else None,
            verdict=verdict,
            why=f"{self.label(worst)} is {self.observed[worst]:.4g}; 90% of {R:,} replicated data "
            f"sets have {low:.4g} to {high:.4g}.",
            remedy="The prior predicts other data: widen, narrow or shift it."
            if self.prior
            else REMEDY,
        )
        # Under the prior all rows depend on each other through the global latents.
        return [row] if self.prior else [row, *pit_findings(self.pit, "PIT", self.columns)]

    @property
    def worst(self) -> tuple[str, float]:
        """The quantity with the smallest corrected p-value, and that value."""
        corrected = self.corrected
        worst = min(corrected, key=lambda n: corrected[n])
        return worst, corrected[worst]

    @property
    def borderline(self) -> bool:
        """True if an alarm may be due to too few replicates: the value is near their extremes."""
        worst, corrected = self.worst
        t = self.replicated[worst]
        return corrected < P_VALUE.good and abs(self.observed[worst] - t.mean()) < 6 * t.std()


def pit_findings(
    pit: Mapping[str, Floats], label: str, columns: Mapping[str, Sequence[str]] | None = None
) -> list[Finding]:
    """One row per site: are u (N, P), NaN left out, uniform in every column?"""
    rows = []
    for name, u in pit.items():
        heading = f"{label} of {name}: p-value of the least uniform column"
        if len(u) < FEWEST_ROWS:
            why = f"{len(u)} rows; a histogram of them needs {FEWEST_ROWS}."
            rows.append(Finding(question=QUESTION, name=heading, why=why, remedy="More rows."))
            continue
        p = np.array([kolmogorov_smirnov_uniformity(column) for column in u.T])
        bad = int((p * len(p) < P_VALUE.good).sum())
        first = column_label(int(p.argmin()), (columns or {}).get(name, ()))
        rows.append(
            replace(P_VALUE, text=f"Bonferroni over {len(p)}: {P_VALUE}").finding(
                QUESTION,
                heading,
                min(1.0, float(p.min()) * len(p)),
                why=f"{bad} of {len(p)} columns have a marginal that the model does not reproduce "
                f"(least uniform: {first}).",
                remedy=REMEDY,
            )
        )
    return rows


def column_label(p: int, names: Sequence[str]) -> str:
    """The name of column p, or its index where columns have no names."""
    return str(names[p]) if p < len(names) else f"column {p}"


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
        columns: Sequence[str] | None,
    ) -> None:
        self.model, self.guide, self.batch, self.prior = model, guide, batch, prior
        self.structure = analyze_for_particles(model, guide, batch, {}, 2)
        self.data = {
            n: flatten_rows(batch[i][None]) for n, i in observed_arguments(model, *batch).items()
        }
        self.steps = steps = sequence_lengths(model, *batch)
        self.columns = {
            n: columns
            for n, x in self.data.items()
            if columns is not None and len(columns) * steps[n] == x.shape[2]
        }
        self.scale = {n: location_and_scale(x) for n, x in self.data.items()}
        self.quantities = {
            n: dict(quantities) | _defined(standard_quantities(x.shape[2], steps[n]), x)
            for n, x in self.data.items()
        }
        self.custom = frozenset(quantities)
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
                for q in self.quantities[name]:
                    self.replicated[f"{name}: {q}"].append(self._evaluate(name, q, x_rep))
                self.below[name] += (x_rep < self.data[name]).sum(0)
                self.tied[name] += (x_rep == self.data[name]).sum(0)

    def _evaluate(self, name: str, quantity: str, x: Tensor) -> Tensor:
        """A quantity of data sets (R, N, P) of a site: (R,) or (R, columns)."""
        T = self.quantities[name][quantity]
        if quantity in self.custom:
            return _evaluate(T, x, quantity)
        value = T(x)
        if value.dim() == 2:
            return value
        center, scale = self.scale[name]
        return T((x - center) / scale)

    def observed(self) -> dict[str, Tensor]:
        """Quantity -> its value of the data, (1,) or (1, columns)."""
        return {
            f"{n}: {q}": self._evaluate(n, q, self.data[n])
            for n in self.quantities
            for q in self.quantities[n]
        }

    def check(self, observed: dict[str, Tensor], count: int) -> PredictiveCheck:
        """The check by all `count` replicates so far; constant quantities are left out."""
        values, replicated, of_columns = {}, {}, {}
        for name, parts in self.replicated.items():
            t, x = torch.cat(parts).double(), observed[name][0].double()
            if t.dim() == 1:
                t, x = t[:, None], x[None]
            varies = (t != x).any(0) & x.isfinite() & t.isfinite().all(0)
            if not varies.any():
                continue
            deviation = (t - t.mean(0)).abs() / t.std(0)
            of_data = ((x - t.mean(0)).abs() / t.std(0)).where(varies, -1.0)
            worst = int(of_data.argmax())
            values[name], replicated[name] = float(x[worst]), t[:, worst].numpy()
            if observed[name].dim() == 2:
                # A column that is constant in the replicates, but not the data's value, deviates.
                largest = deviation.where(varies, -1.0).nan_to_num(0.0).amax(1)
                p = (largest > of_data[worst]).double() + (largest == of_data[worst]).double() / 2
                site = name.partition(": ")[0]
                index = int(column_index(self.width(site))[worst])
                label = column_label(index, self.columns.get(site, ()))
                of_columns[name] = (label if len(x) > 1 else "", float(p.mean()))
        u = {
            n: (b + torch.rand(b.shape) * (self.tied[n] + 1)) / (count + 1)
            for n, b in self.below.items()
        }
        u = {n: mask_missing(values, self.data[n][0]) for n, values in u.items()}
        pit = {n: v.double().numpy() for n, v in u.items()}
        return PredictiveCheck(values, replicated, pit, self.prior, of_columns, self.columns)

    def width(self, site: str) -> int:
        """Columns of a site, of a sequence those of one step."""
        return self.data[site].shape[2] // self.steps[site]


def predictive_check(
    model: Program,
    guide: Program,
    *batch: Any,
    quantities: Mapping[str, Quantity] | None = None,
    num_replicates: int = 999,
    prior: bool = False,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> PredictiveCheck:
    """Test quantities and PIT of `batch` among replicated data.

    Where the first replicates would raise an alarm near their extremes, four times as many follow.

    Args:
        quantities: further test quantities, name -> a function of data sets (R, N, P) to (R,);
            missing values of the data are NaN.
        prior: draw global latents from the prior too (prior predictive check).
        columns: names of the columns.

    Raises:
        CannotSayError: data cannot be simulated from the model.
        ValueError: a test quantity does not return one value per data set.
    """
    with isolated_rng(seed), torch.no_grad():
        replication = _Replication(model, guide, batch, quantities or {}, prior, columns)
        observed = replication.observed()
        replication.add(num_replicates)
        check = replication.check(observed, num_replicates)
        if not check.borderline:
            return check
        replication.add(EXTRA * num_replicates)
        return replication.check(observed, (1 + EXTRA) * num_replicates)


def _defined(quantities: dict[str, Quantity], x: Tensor) -> dict[str, Quantity]:
    """Those that data sets of the shape of x (1, N, P) have: one value has no sd."""
    return {name: T for name, T in quantities.items() if not T(x).isnan().all()}


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
        columns=context.columns,
        seed=context.seed,
    )


POSTERIOR_PREDICTIVE = Diagnostic(
    slug="predictive",
    question=QUESTION,
    title="predictive checks",
    run=lambda c: _run_check(c, prior=False),
    spoils=("samples",),
)
PRIOR_PREDICTIVE = Diagnostic(
    slug="prior",
    question=QUESTION,
    title="prior predictive checks",
    run=lambda c: _run_check(c, prior=True),
    applies=lambda c: c.budget.joint,
)
