"""Does it reproduce the data? Predictive checks, PIT, and a two-sample test.

Replicated data x_rep have fresh local latents z ~ p(z) and global ones from q: z from q(z | x) has
seen x and would reproduce it whatever the model.

    test quantity T:   p = P(T(x_rep) > T(x)) + ½ P(T(x_rep) = T(x))
    PIT:               u_np = P(x_rep,np < x_np), ties by a fair draw, uniform over rows n
    prior check:       the same with global latents from the prior: does it foresee such data?
    two-sample test:   can a classifier tell data from replicates? Two of them, nearest neighbours
                       and ridge regression on x, x² and products, both left-one-out; the null
                       distribution permutes the labels, so that sharing data between folds and
                       taking the better classifier cost nothing.

Checks on rows that the parameters were fitted to are conservative: give held-out rows.

A value that is missing from the data (NaN) is made missing from every replicate too: all of them
are compared where something was observed.

References:
    Gelman, Meng, Stern (1996). Posterior predictive assessment of model fitness.
    Lopez-Paz, Oquab (2017). Revisiting classifier two-sample tests.
    https://arxiv.org/abs/1610.06545
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.finding import BAD, LOOK, PROJECT_DEFAULT, Finding, graded
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.particles.structure import Program
from ppl_lvm.posterior.simulation import observed_places, observed_steps, replicates

QUESTION = "Does it reproduce the data?"
MORE = 4  # times as many replicates where the first ones raise an alarm
MAX_EIGEN = 64  # columns up to which the largest eigenvalue is a test quantity
ROWS, NEIGHBORS, PERMUTATIONS = 500, 11, 499
Quantity = Callable[[Tensor], Tensor]
Floats = NDArray[np.float64]


def quantities(columns: int, steps: int = 1) -> dict[str, Quantity]:
    """The usual test quantities: each maps data sets (R, N, P) to (R,), missing values (NaN) the
    same in all of them. Of sequences P = steps × columns a step, and how a step hangs together with
    the next is asked too, of values and of their squares: what moves, and what is wild or calm.
    """
    found: dict[str, Quantity] = {
        "mean": lambda x: x.nanmean((1, 2)),
        "sd": lambda x: _sd(x.flatten(1)),
        "sd of row means": lambda x: _sd(x.nanmean(2)),
        "smallest": lambda x: torch.where(x.isnan(), math.inf, x).amin((1, 2)),
        "largest": lambda x: torch.where(x.isnan(), -math.inf, x).amax((1, 2)),
    }
    if columns == 1:
        found["skewness"] = lambda x: _skewness(x.flatten(1))
        del found["sd of row means"]  # the sd itself
    elif columns <= MAX_EIGEN:
        found["largest eigenvalue"] = _largest_eigenvalue
    if steps > 1:
        found["correlation of steps"] = lambda x: _from_step_to_step(x, steps, 1)
        found["correlation of steps' squares"] = lambda x: _from_step_to_step(x, steps, 2)
    return found


def _sd(x: Tensor) -> Tensor:
    squares = (x - x.nanmean(1, keepdim=True)).square()
    return (squares.nansum(1) / ((~x.isnan()).sum(1) - 1)).sqrt()


def _skewness(x: Tensor) -> Tensor:
    centered = x - x.nanmean(1, keepdim=True)
    return (centered**3).nanmean(1) / (centered**2).nanmean(1) ** 1.5


def _largest_eigenvalue(x: Tensor) -> Tensor:
    """Of the covariance, each entry from the rows that have both columns."""
    seen = (~x[0].isnan()).to(x)  # (N, P)
    centered = (x - x.nanmean(1, keepdim=True)).nan_to_num(0.0)
    covariance = centered.mT @ centered / (seen.mT @ seen).clamp(min=1)
    return torch.linalg.eigvalsh(covariance)[:, -1]


def _from_step_to_step(x: Tensor, steps: int, power: int) -> Tensor:
    """Correlation of a column's deviations, to a power, with those a step later: columns' mean."""
    x = x.unflatten(2, (steps, -1))  # (R, N, T, P)
    d = (x - x.nanmean((1, 2), keepdim=True)) ** power
    both = ~(d[:, :, 1:] + d[:, :, :-1]).isnan()
    count = both.sum((1, 2), keepdim=True).clamp(min=1)
    now, later = (t.where(both, 0.0) for t in (d[:, :, :-1], d[:, :, 1:]))
    now, later = ((t - t.sum((1, 2), keepdim=True) / count).where(both, 0.0) for t in (now, later))
    spread = (now.square().sum((1, 2)) * later.square().sum((1, 2))).sqrt()  # (R, P)
    tiny = torch.finfo(x.dtype).tiny
    return ((now * later).sum((1, 2)) / spread.clamp(min=tiny)).mean(-1)


@dataclass(frozen=True)
class Check:
    """Attributes:
    observed: "site: quantity" -> T(x).
    replicated: the same -> T(x_rep) (R,).
    pit: site -> u (N, P), NaN where a value is missing.
    prior: whether global latents came from the prior.
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
        verdict = graded(-corrected, -LOOK, -BAD)
        if self.prior and verdict == "bad":
            verdict = "warning"  # a prior that is far off may be overruled by the data
        low, high = np.quantile(self.replicated[worst], [0.05, 0.95])
        rows = [
            Finding(
                QUESTION,
                f"{'prior ' * self.prior}predictive check: p-value of the worst test quantity",
                p,
                math.sqrt(p * (1 - p) / R),
                f"two-sided × {len(self.observed)} quantities: good ≥ {LOOK}, bad < {BAD}",
                PROJECT_DEFAULT,
                verdict,
                f"{worst} is {self.observed[worst]:.4g}; 90% of {R} replicated data sets have "
                f"{low:.4g} to {high:.4g}.",
                ""
                if corrected >= LOOK
                else "The prior does not foresee such data: widen, narrow or move it."
                if self.prior
                else _REMEDY,
            )
        ]
        # Under the prior all rows hang together through the global latents: no test of each.
        return rows if self.prior else rows + pit_findings(self.pit, "PIT")

    @property
    def worst(self) -> tuple[str, float]:
        """The quantity of the smallest p-value, and that value two-sided and Bonferroni's."""
        each = {n: 2 * min(p, 1 - p) for n, p in self.p_values.items()}
        worst = min(each, key=lambda n: each[n])
        return worst, min(1.0, each[worst] * len(each))

    @property
    def doubtful(self) -> bool:
        """Whether an alarm may be an accident of few replicates: it is near their edge."""
        worst, corrected = self.worst
        t = self.replicated[worst]
        return corrected < LOOK and abs(self.observed[worst] - t.mean()) < 6 * t.std()


def pit_findings(pit: Mapping[str, Floats], what: str) -> list[Finding]:
    """One row a site: are u (N, P), NaN left out, uniform in every column?"""
    rows = []
    for name, u in pit.items():
        p = np.array([uniformity(column) for column in u.T])
        corrected = min(1.0, float(p.min()) * len(p))
        bad = int((p * len(p) < LOOK).sum())
        rows.append(
            Finding(
                QUESTION,
                f"{what} of {name}: p-value of the least uniform column",
                corrected,
                None,
                f"Bonferroni over {len(p)}: good ≥ {LOOK}, bad < {BAD}",
                PROJECT_DEFAULT,
                graded(-corrected, -LOOK, -BAD),
                f"{bad} of {len(p)} columns have a marginal that the model does not reproduce "
                f"(first: {int(p.argmin())}).",
                "" if corrected >= LOOK else _REMEDY,
            )
        )
    return rows


def uniformity(u: Floats) -> float:
    """p-value of Kolmogorov's and Smirnov's test; 1 where all of `u` (N,) is NaN."""
    seen = u[~np.isnan(u)]
    return float(stats.kstest(seen, "uniform").pvalue) if len(seen) else 1.0


_REMEDY = "The likelihood or the prior does not fit: another family, more components, latents."


def check(
    model: Program,
    guide: Program,
    *batch: Any,
    own: Mapping[str, Quantity] | None = None,
    num_replicates: int = 999,
    prior: bool = False,
    seed: int = 0,
) -> Check:
    """Test quantities and PIT of `batch` among replicated data.

    Where the first replicates would raise an alarm at their edge, four times as many follow.

    `own` adds test quantities, each from data sets (R, N, P) to (R,), NaN where a value of the data
    is missing. `prior` takes global latents
    from the prior too (prior predictive check).

    Raises:
        CannotSayError: data cannot be simulated from the model.
        ValueError: a test quantity gives something else than a number a data set.
    """
    with isolated_rng(seed), torch.no_grad():
        plan = analyze_for_particles(model, guide, batch, {}, 2)
        data = {n: _flat(batch[i][None]) for n, i in observed_places(model, *batch).items()}
        steps = observed_steps(model, *batch)
        asked = {n: quantities(x.shape[2], steps[n]) | dict(own or {}) for n, x in data.items()}
        drawn: dict[str, list[Tensor]] = {f"{n}: {q}": [] for n in asked for q in asked[n]}
        below = {n: torch.zeros(x.shape[1:]) for n, x in data.items()}
        tied = {n: torch.zeros(x.shape[1:]) for n, x in data.items()}

        def replicate(count: int) -> None:
            for chunk in replicates(model, guide, batch, plan, count, prior):
                for name, values in chunk.items():
                    x_rep = _masked(_flat(values), data[name])
                    for q, T in asked[name].items():
                        drawn[f"{name}: {q}"].append(_asked(T, x_rep, q))
                    below[name] += (x_rep < data[name]).sum(0)
                    tied[name] += (x_rep == data[name]).sum(0)

        observed = {
            f"{n}: {q}": float(_asked(T, data[n], q)[0]) for n in asked for q, T in asked[n].items()
        }

        def found(count: int) -> Check:
            replicated = {n: torch.cat(t).double().numpy() for n, t in drawn.items()}
            u = {
                n: (b + torch.rand(b.shape) * (tied[n] + 1)) / (count + 1) for n, b in below.items()
            }
            u = {n: _masked(values, data[n][0]) for n, values in u.items()}
            return Check(observed, replicated, {n: v.double().numpy() for n, v in u.items()}, prior)

        replicate(num_replicates)
        first = found(num_replicates)
        if not first.doubtful:
            return first
        replicate(MORE * num_replicates)
        return found((1 + MORE) * num_replicates)


def _asked(quantity: Quantity, x: Tensor, name: str) -> Tensor:
    """T (R,) of data sets (R, N, P).

    Raises:
        ValueError: the quantity gives anything else.
    """
    value = quantity(x)
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"The test quantity '{name}' must map data sets (R, N, P) = {tuple(x.shape)} to "
            f"({len(x)},), one number each; it gave {got}."
        )
    if value.isnan().any():
        raise ValueError(
            f"The test quantity '{name}' gives NaN. Values that are missing from the data are NaN "
            "here: take torch.nanmean and the like."
            if x.isnan().any()
            else f"The test quantity '{name}' gives NaN on data without a missing value."
        )
    return value


def _masked(x_rep: Tensor, x: Tensor) -> Tensor:
    """Replicates (..., N, P) with NaN where the data `x` have it."""
    return torch.where(x.isnan(), math.nan, x_rep)


def _flat(x: Tensor) -> Tensor:
    """(R, N, ...) as floating-point (R, N, P)."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.reshape(*x.shape[:2], -1)


@dataclass(frozen=True)
class TwoSample:
    """Attributes:
    accuracy: classifier -> left-one-out accuracy.
    p_value: of the better classifier, by permutation.
    rows: of each sample.
    """

    accuracy: dict[str, float]
    p_value: float
    rows: int

    def findings(self) -> list[Finding]:
        best = max(self.accuracy, key=lambda n: self.accuracy[n])
        value = self.accuracy[best]
        verdict = "good" if self.p_value >= LOOK else "warning" if value <= 0.6 else "bad"
        return [
            Finding(
                QUESTION,
                "classifier two-sample test: accuracy",
                value,
                math.sqrt(0.25 / (2 * self.rows)),
                f"good if p ≥ {LOOK}, else bad > 0.6",
                f"Lopez-Paz & Oquab 2017, arXiv:1610.06545; levels: {PROJECT_DEFAULT}",
                verdict,  # type: ignore[arg-type]
                f"p = {self.p_value:.3f}; {best} tells {self.rows} rows of data from as many of "
                "the model. A weak classifier hides faults.",
                "" if verdict == "good" else _REMEDY,
            )
        ]


def two_sample(model: Program, guide: Program, *batch: Any, seed: int = 0) -> TwoSample:
    """Data against one replicated data set, at most 500 rows each.

    Raises:
        CannotSayError: data cannot be simulated from the model.
    """
    with isolated_rng(seed), torch.no_grad():
        plan = analyze_for_particles(model, guide, batch, {}, 2)
        (drawn,) = replicates(model, guide, batch, plan, 1, prior=False)
        places = observed_places(model, *batch)
        x = torch.cat([_flat(batch[i][None])[0] for i in places.values()], -1)
        y = _masked(torch.cat([_flat(drawn[n])[0] for n in places], -1), x)
    generator = np.random.default_rng(seed)
    pick = generator.permutation(len(x))[:ROWS]
    other = generator.permutation(len(y))[:ROWS]
    return classify(x.double().numpy()[pick], y.double().numpy()[other], generator)


def classify(x: Floats, y: Floats, generator: np.random.Generator) -> TwoSample:
    """Can classifiers tell samples x, y (n, P) apart? Null distribution by permutation.

    A value that is missing (NaN) is taken to be its column's mean; of as many values in y as in x.
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
        {"nearest neighbours": float(scores[0, 0]), "ridge": float(scores[1, 0])}, float(p), len(x)
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
    """Ridge regression's prediction of each row from the others: (y − ŷ) / (1 − h) taken off y."""
    P = z.shape[1]
    features = [np.ones((len(z), 1)), z, z**2]
    if P <= 10:
        i, j = np.triu_indices(P, 1)
        features.append(z[:, i] * z[:, j])
    A = np.concatenate(features, 1)
    gram = A.T @ A + 0.01 * len(z) * np.eye(A.shape[1])
    H = A @ np.linalg.solve(gram, A.T)  # (2n, 2n)
    out: Floats = Y - (Y - H @ Y) / (1 - np.diag(H))[:, None]
    return out
