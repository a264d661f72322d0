"""Is it calibrated? Simulation-based calibration with an amortised guide: no refitting.

Draw z* ~ p(z), x ~ p(x | z*), and L draws z_l ~ q(z | x). If q is the posterior, the rank

    r = #{l : z_l < z*},    ties counted by a fair draw (discrete latents),

is uniform on 0…L, for every latent number and for log p(x, z), which looks at the data too. A
χ² test over bins of ranks gives a p-value, the ranks' empirical distribution a band that a
uniform one stays within as a whole, and the share of ranks in the middle the coverage of central
intervals. Ranks average over the prior and see nothing of dependence between latents.

A guide that is not amortised has to be fitted anew to every simulated data set: `vsbc` takes the
fitting as a function and tests whether the marginal probabilities Q(z < z*) are symmetric about
1/2. It sees location only: a wrong scale passes it.

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018). https://arxiv.org/abs/1804.06788
    Modrák et al. (2023). Simulation-based calibration checking with test quantities that depend
    on the data. https://arxiv.org/abs/2211.02383
    Säilynoja, Bürkner, Vehtari (2022). Graphical test for discrete uniformity.
    https://arxiv.org/abs/2103.10522 (the band; here calibrated by simulation)
    Yao, Vehtari, Simpson, Gelman (2018). https://arxiv.org/abs/1802.02538 (VSBC; its
    Kolmogorov–Smirnov test is not calibrated, so Wilcoxon's signed-rank test is used)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.amortization import require_amortized
from ppl_lvm.diagnostics.finding import BAD, LOOK, PROJECT_DEFAULT, Finding, graded
from ppl_lvm.diagnostics.invalid_parameters import on_simulated
from ppl_lvm.particles import analyze_for_particles, draw_particles
from ppl_lvm.particles.layout import by_row
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.posterior.simulation import simulate

QUESTION = "Is it calibrated?"
JOINT = "log p(x, z)"
BINS = 20
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Attributes:
    ranks: quantity ("z[0]", "log p(x, z)") -> (n,) ranks in 0…L.
    num_draws: L.
    """

    ranks: dict[str, Ints]
    num_draws: int

    @property
    def p_values(self) -> dict[str, float]:
        """Quantity -> p-value of the χ² test of uniformity."""
        return {name: uniformity(r, self.num_draws) for name, r in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest p-value, Bonferroni-corrected for the number of quantities."""
        return min(1.0, min(self.p_values.values()) * len(self.ranks))

    def coverage(self, level: float) -> dict[str, tuple[float, float]]:
        """Quantity -> share of truths within the central interval, and its standard error.

        `level` is rounded to what L draws can tell; see `nominal`.
        """
        low, high = self._middle(level)
        n = len(next(iter(self.ranks.values())))
        error = math.sqrt(self.nominal(level) * (1 - self.nominal(level)) / n)
        return {
            name: (float(((r >= low) & (r <= high)).mean()), error)
            for name, r in self.ranks.items()
        }

    def nominal(self, level: float) -> float:
        """The level that `coverage` really has: a whole number of ranks out of L + 1."""
        low, high = self._middle(level)
        return (high - low + 1) / (self.num_draws + 1)

    def _middle(self, level: float) -> tuple[int, int]:
        outside = round((1 - level) / 2 * (self.num_draws + 1))
        return outside, self.num_draws - outside

    def findings(self) -> list[Finding]:
        p, worst = self.p_value, min(self.p_values, key=lambda n: self.p_values[n])
        n = len(self.ranks[worst])
        return [
            Finding(
                QUESTION,
                "simulation-based calibration, p-value",
                p,
                None,
                f"good ≥ {LOOK}, bad < {BAD}",
                f"Talts et al. 2018, arXiv:1804.06788; levels: {PROJECT_DEFAULT}",
                graded(-p, -LOOK, -BAD),
                f"{n} simulations, {len(self.ranks)} quantities; the least uniform ranks are those "
                f"of {worst}: {shape(self.ranks[worst], self.num_draws)}.",
                ""
                if p >= LOOK
                else "Train q on data simulated from the model (wake-sleep), or use a richer "
                "guide; correct its draws by importance weights.",
            ),
            self._coverage_finding(0.9),
        ]

    def _coverage_finding(self, level: float) -> Finding:
        nominal, found = self.nominal(level), self.coverage(level)
        worst = max(found, key=lambda n: abs(found[n][0] - nominal))
        value, error = found[worst]
        # Beyond what chance does to the worst of as many quantities, by the normal quantile.
        allowed = error * float(stats.norm.isf(LOOK / 2 / len(found)))
        excess = max(abs(value - nominal) - allowed, 0.0)
        return Finding(
            QUESTION,
            f"coverage of central {nominal:.0%} intervals, worst quantity",
            value,
            error,
            f"good within ± {allowed:.3f} of {nominal:.2f}, bad beyond 0.05 more",
            PROJECT_DEFAULT,
            graded(excess, 0.0, 0.05),
            f"{worst}: {value:.1%} of the truths lie in q's interval.",
            ""
            if excess == 0
            else ("q is too narrow: widen it." if value < nominal else "q is too wide."),
        )


def uniformity(ranks: Ints, num_draws: int) -> float:
    """p-value of the χ² test that ranks are uniform on 0…L, in at most 20 bins of equal size."""
    bins = max(b for b in range(2, BINS + 1) if (num_draws + 1) % b == 0)
    counts = np.bincount(ranks * bins // (num_draws + 1), minlength=bins)
    return float(stats.chisquare(counts).pvalue)


def shape(ranks: Ints, num_draws: int) -> str:
    """What the ranks say, in words."""
    u = (ranks + 0.5) / (num_draws + 1)
    n = len(u)
    mean, spread = (u.mean() - 0.5) * math.sqrt(12 * n), (u.var() - 1 / 12) * math.sqrt(180 * n)
    if max(abs(mean), abs(spread)) < 3:
        return "no clear shape"
    if abs(mean) > abs(spread):
        return "q lies too low" if mean > 0 else "q lies too high"
    return "q is too narrow" if spread > 0 else "q is too wide"


def ecdf_band(
    num_simulations: int, num_draws: int, level: float = 0.95, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """(rank share, lower, upper) of the ranks' empirical distribution: simultaneous band.

    Pointwise binomial intervals at a level so chosen, by 2000 simulated uniform samples, that
    a share `level` of samples stays inside everywhere.
    """
    n, generator = num_simulations, np.random.default_rng(seed)
    z = np.arange(1, num_draws + 1) / (num_draws + 1)  # (L,)
    counts = generator.multinomial(n, np.full(num_draws + 1, 1 / (num_draws + 1)), 2000)
    below = counts.cumsum(1)[:, :-1]  # (2000, L)
    tails = 2 * np.minimum(stats.binom.cdf(below, n, z), stats.binom.sf(below - 1, n, z))
    gamma = np.quantile(tails.min(1), 1 - level)
    return z, stats.binom.ppf(gamma / 2, n, z) / n, stats.binom.ppf(1 - gamma / 2, n, z) / n


def sbc(
    model: Program,
    guide: Program,
    *batch: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    seed: int = 0,
) -> Calibration:
    """Ranks of n ≥ `num_simulations` simulated truths among L = `num_draws` draws of q each.

    Every row of a simulated batch is one simulation, so a few passes do. With global latents a
    pass is one simulation; then the global sites are ranked, and row 0 of the local ones.

    Raises:
        CannotSayError: the guide draws nothing, does not read the data, or samples sites that the
            model lacks; the data cannot be simulated.
    """
    with isolated_rng(seed), torch.no_grad():
        plan = analyze_for_particles(model, guide, batch, {}, num_draws)
        if not plan.latents:
            raise CannotSayError("The guide draws nothing: every latent is summed out exactly.")
        require_amortized(model, guide, batch, plan)
        each = 1 if plan.data_plate is None else len(batch[0])
        passes = [
            _one_pass(model, guide, batch, plan, num_draws)
            for _ in range(-(-num_simulations // each))
        ]
    ranks = {name: np.concatenate([p[name] for p in passes]) for name in passes[0]}
    return Calibration(ranks, num_draws)


def _one_pass(
    model: Program, guide: Program, batch: tuple[Any, ...], plan: PairStructure, num_draws: int
) -> dict[str, Ints]:
    """Quantity -> ranks (N,), or (1,) with global latents."""
    values, fresh = simulate(model, *batch)
    with on_simulated(model, guide, batch, fresh):
        drawn = draw_particles(model, guide, fresh, {}, plan, num_draws)
    rows = len(batch[0])
    found = {}
    for name, draw in drawn.site_draws.items():
        if draw.is_constant:
            continue
        local = rows if draw.is_local or _has_rows(draw.value, rows, plan) else None
        z = by_row(draw.value, local, plan.nesting)  # (L, N, d)
        truth = by_row(values[name].reshape(1, *draw.value.shape[1:]), local, plan.nesting)
        if plan.data_plate is None:
            z, truth = z[:, :1], truth[:, :1]
        r = _rank(z, truth).numpy()  # (N, d)
        for i in range(r.shape[1]):
            found[f"{name}[{i}]" if r.shape[1] > 1 else name] = r[:, i]
    # Classes that are summed out for the draws are summed out for the truth.
    truth_of = {name: v for name, v in values.items() if name not in plan.enumerated}
    sites = run_pair(model, guide, fresh, {}, plan, None, values=truth_of)
    tables = tabulate(*sites, plan, False)
    parts = [v for n, v in tables.log_p.items() if n not in plan.constant]
    parts += [] if tables.marginal is None else [tables.marginal]
    log_p = torch.stack([p.expand(1, drawn.log_p.shape[1]) for p in parts]).sum(0)
    found[JOINT] = _rank(drawn.log_p[..., None], log_p[..., None])[:, 0].numpy()
    return found


def _has_rows(value: Tensor, rows: int, plan: PairStructure) -> bool:
    """With global latents: whether this site has a plate dimension of N rows."""
    return plan.data_plate is None and rows in value.shape[1 : 1 + plan.nesting]


def _rank(z: Tensor, truth: Tensor) -> Tensor:
    """#{z_l < z*} of z (L, N, d) against truth (1, N, d), ties by a fair draw: (N, d)."""
    below, tied = (z < truth).sum(0), (z == truth).sum(0)
    return below + (torch.rand(tied.shape) * (tied + 1)).long()


@dataclass(frozen=True)
class Symmetry:
    """Attributes:
    probabilities: quantity -> (n,) Q(z < z*) of each fit.
    """

    probabilities: dict[str, Floats]

    @property
    def p_values(self) -> dict[str, float]:
        """Quantity -> p-value of Wilcoxon's signed-rank test on Q(z < z*) − 1/2."""
        return {n: float(stats.wilcoxon(p - 0.5).pvalue) for n, p in self.probabilities.items()}

    def findings(self) -> list[Finding]:
        each = self.p_values
        worst = min(each, key=lambda n: each[n])
        p = min(1.0, each[worst] * len(each))
        low = self.probabilities[worst].mean() > 0.5
        return [
            Finding(
                QUESTION,
                "VSBC symmetry, p-value",
                p,
                None,
                f"good ≥ {LOOK}, bad < {BAD}",
                f"Yao et al. 2018, arXiv:1802.02538; levels: {PROJECT_DEFAULT}",
                graded(-p, -LOOK, -BAD),
                f"Location only. Least symmetric: {worst}, whose estimates lie too "
                f"{'low' if low else 'high'} on average.",
                "" if p >= LOOK else "A richer guide; correct its draws by importance weights.",
            )
        ]


def vsbc(
    model: Program,
    refit: Callable[..., Program],
    *batch: Any,
    num_simulations: int = 100,
    num_draws: int = 199,
    seed: int = 0,
) -> Symmetry:
    """Fit `num_simulations` simulated data sets, `refit(*batch) -> guide`, and test symmetry.

    Global sites are looked at, and row 0 of local ones, so that all simulations are independent.
    """
    found: dict[str, list[float]] = {}
    with isolated_rng(seed):
        for _ in range(num_simulations):
            with torch.no_grad():
                values, fresh = simulate(model, *batch)
            guide = refit(*fresh)
            with torch.no_grad():
                plan = analyze_for_particles(model, guide, fresh, {}, num_draws)
                drawn = draw_particles(model, guide, fresh, {}, plan, num_draws)
            for name, draw in drawn.site_draws.items():
                has_rows = len(batch[0]) in draw.value.shape[1 : 1 + plan.nesting]
                rows = len(batch[0]) if draw.is_local or has_rows else None
                z = by_row(draw.value, rows, plan.nesting)[:, :1]
                truth = values[name].reshape(1, *draw.value.shape[1:])
                r = _rank(z, by_row(truth, rows, plan.nesting)[:, :1])[0]
                for i, rank in enumerate(r.tolist()):
                    key = f"{name}[{i}]" if len(r) > 1 else name
                    found.setdefault(key, []).append((rank + 0.5) / (num_draws + 1))
    return Symmetry({name: np.array(p) for name, p in found.items()})
