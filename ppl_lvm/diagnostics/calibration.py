"""Simulation-based calibration of an amortized guide, and VSBC.

Draw z* ~ p(z), x ~ p(x | z*), and L draws z_l ~ q(z | x). If q is the posterior, the rank

    r = #{l : z_l < z*},    ties broken at random (discrete latents),

is uniform on 0…L, for every scalar latent and for log p(x, z), which also depends on the data. A
χ² test over bins of ranks gives a p-value. The share of ranks in the middle is the coverage of
central intervals. Ranks average over the prior and do not detect wrong dependence between latents.
Components that may be exchanged are matched to q's before they are ranked (`exchangeable_labels`).

A guide that is not amortized has to be fitted again to every simulated data set: `vsbc` takes the
fitting as a function and tests if the marginal probabilities Q(z < z*) are symmetric about 1/2. It
detects location errors only, not a wrong scale.

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018). https://arxiv.org/abs/1804.06788
    Modrák et al. (2023). Simulation-based calibration checking with test quantities that depend
    on the data. https://arxiv.org/abs/2211.02383
    Yao, Vehtari, Simpson, Gelman (2018). https://arxiv.org/abs/1802.02538 (VSBC; its
    Kolmogorov–Smirnov test is not calibrated, so Wilcoxon's signed-rank test is used)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Floats, Program
from ppl_lvm.diagnostics.amortization import require_amortized
from ppl_lvm.diagnostics.base import Context, Diagnostic
from ppl_lvm.diagnostics.exchangeable_labels import align, exchangeable_axes
from ppl_lvm.diagnostics.finding import P_VALUE, PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.diagnostics.invalid_parameters import locate_invalid_parameters
from ppl_lvm.diagnostics.refit import refit_guide
from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles
from ppl_lvm.particles.layout import by_row
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.posterior.simulation import simulate

QUESTION = "Is it calibrated?"
LOG_JOINT = "log p(x, z)"
MAX_BINS = 20
Ints = NDArray[np.int64]

SBC_P_VALUE = replace(
    P_VALUE, source=f"Talts et al. 2018, arXiv:1804.06788; levels: {PROJECT_DEFAULT}"
)
VSBC_P_VALUE = replace(
    P_VALUE, source=f"Yao et al. 2018, arXiv:1802.02538; levels: {PROJECT_DEFAULT}"
)


@dataclass(frozen=True)
class Calibration:
    """Ranks of simulated truths among draws of q.

    Attributes:
        ranks: quantity ("z[0]", "log p(x, z)") -> (n,) ranks in 0…L.
        num_draws: L.
    """

    ranks: dict[str, Ints]
    num_draws: int

    @property
    def p_values(self) -> dict[str, float]:
        """Quantity -> p-value of the χ² test of uniformity."""
        return {name: chi_square_uniformity(r, self.num_draws) for name, r in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest p-value, Bonferroni-corrected for the number of quantities."""
        return min(1.0, min(self.p_values.values()) * len(self.ranks))

    def coverage(self, level: float) -> dict[str, tuple[float, float]]:
        """Quantity -> share of truths within the central interval, and its standard error.

        `level` is rounded to a multiple that L draws resolve; see `nominal`.
        """
        low, high = self._central_ranks(level)
        n = len(next(iter(self.ranks.values())))
        error = math.sqrt(self.nominal(level) * (1 - self.nominal(level)) / n)
        return {
            name: (float(((r >= low) & (r <= high)).mean()), error)
            for name, r in self.ranks.items()
        }

    def nominal(self, level: float) -> float:
        """The exact level of `coverage`: a whole number of ranks out of L + 1."""
        low, high = self._central_ranks(level)
        return (high - low + 1) / (self.num_draws + 1)

    def _central_ranks(self, level: float) -> tuple[int, int]:
        tail = round((1 - level) / 2 * (self.num_draws + 1))
        return tail, self.num_draws - tail

    def findings(self) -> list[Finding]:
        worst = min(self.p_values, key=lambda n: self.p_values[n])
        n = len(self.ranks[worst])
        return [
            SBC_P_VALUE.finding(
                QUESTION,
                "simulation-based calibration, p-value",
                self.p_value,
                why=f"{n} simulations, {len(self.ranks)} quantities; the least uniform ranks are "
                f"those of {worst}: {describe_ranks(self.ranks[worst], self.num_draws)}.",
                remedy="Train q on data simulated from the model (wake-sleep), or use a richer "
                "guide; correct its draws by importance weights.",
            ),
            self._coverage_finding(0.9),
        ]

    def _coverage_finding(self, level: float) -> Finding:
        from scipy.stats import norm

        nominal, coverage = self.nominal(level), self.coverage(level)
        worst = max(coverage, key=lambda n: abs(coverage[n][0] - nominal))
        value, error = coverage[worst]
        # The largest deviation that chance explains for as many quantities (normal quantile).
        allowed = error * float(norm.isf(P_VALUE.good / 2 / len(coverage)))
        threshold = Threshold(
            good=0.0,
            bad=0.05,
            text=f"good within ± {allowed:.3f} of {nominal:.2f}, bad beyond 0.05 more",
        )
        return threshold.finding(
            QUESTION,
            f"coverage of central {nominal:.0%} intervals, worst quantity",
            value,
            error,
            graded=max(abs(value - nominal) - allowed, 0.0),
            why=f"{worst}: {value:.1%} of the truths lie in q's interval.",
            remedy="q is too narrow: widen it." if value < nominal else "q is too wide.",
        )


def chi_square_uniformity(ranks: Ints, num_draws: int) -> float:
    """p-value of the χ² test that ranks are uniform on 0…L, in at most 20 bins of equal size."""
    from scipy.stats import chisquare

    bins = max(b for b in range(2, MAX_BINS + 1) if (num_draws + 1) % b == 0)
    counts = np.bincount(ranks * bins // (num_draws + 1), minlength=bins)
    return float(chisquare(counts).pvalue)


def describe_ranks(ranks: Ints, num_draws: int) -> str:
    """The error of q that the histogram of ranks shows, as text."""
    u = (ranks + 0.5) / (num_draws + 1)
    n = len(u)
    mean, spread = (u.mean() - 0.5) * math.sqrt(12 * n), (u.var() - 1 / 12) * math.sqrt(180 * n)
    if max(abs(mean), abs(spread)) < 3:
        return "no clear shape"
    if abs(mean) > abs(spread):
        return "q lies too low" if mean > 0 else "q lies too high"
    return "q is too narrow" if spread > 0 else "q is too wide"


def sbc(
    model: Program,
    guide: Program,
    *batch: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    seed: int = 0,
) -> Calibration:
    """Ranks of n ≥ `num_simulations` simulated truths among L = `num_draws` draws of q each.

    Every row of a simulated batch is one simulation, so a few batches are enough. With global
    latents a batch is one simulation; then the global sites are ranked, and row 0 of local ones.

    Raises:
        CannotSayError: the guide has no latents, does not read the data, or draws sites that the
            model lacks; or data cannot be simulated.
    """
    with isolated_rng(seed), torch.no_grad():
        structure = analyze_for_particles(model, guide, batch, {}, num_draws)
        if not structure.latents:
            raise CannotSayError(
                "The guide draws nothing: every latent is summed out exactly.", verdict="exact"
            )
        require_amortized(model, guide, batch, structure)
        per_batch = 1 if structure.data_plate is None else len(batch[0])
        ranks = [
            _simulated_ranks(model, guide, batch, structure, num_draws)
            for _ in range(-(-num_simulations // per_batch))
        ]
    return Calibration({n: np.concatenate([r[n] for r in ranks]) for n in ranks[0]}, num_draws)


def _simulated_ranks(
    model: Program, guide: Program, batch: Batch, structure: PairStructure, num_draws: int
) -> dict[str, Ints]:
    """Quantity -> ranks (N,) in one simulated batch, or (1,) with global latents."""
    values, simulated = simulate(model, *batch)
    with locate_invalid_parameters(model, guide, batch, simulated):
        particles = draw_particles(model, guide, simulated, {}, structure, num_draws)
    truths = {name: v for name, v in values.items() if name not in structure.enumerated}
    log_p = _log_joint(model, guide, simulated, structure, truths)
    values = _aligned(model, guide, simulated, structure, values, particles)
    ranks = {}
    for name, draws in particles.site_draws.items():
        if draws.is_constant:
            continue
        z = by_row(draws.value, draws.row_axis)  # (L, N, d)
        truth = by_row(values[name].reshape(1, *draws.value.shape[1:]), draws.row_axis)
        if structure.data_plate is None:
            z, truth = z[:, :1], truth[:, :1]
        r = _rank(z, truth).numpy()  # (N, d)
        for i in range(r.shape[1]):
            ranks[f"{name}[{i}]" if r.shape[1] > 1 else name] = r[:, i]
    log_p = log_p.expand(1, particles.log_p.shape[1])
    ranks[LOG_JOINT] = _rank(particles.log_p[..., None], log_p[..., None])[:, 0].numpy()
    return ranks


def _log_joint(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    values: Mapping[str, Tensor],
) -> Tensor:
    """log p(x, z) (1, N), or (1, 1) where it is joint; enumerated sites are summed out."""
    sites = run_pair(model, guide, batch, {}, structure, None, values=values)
    tables = tabulate(*sites, structure, False)
    parts = [v for n, v in tables.log_p.items() if n not in structure.constant]
    parts += [] if tables.marginal is None else [tables.marginal]
    return sum(torch.broadcast_tensors(*parts), torch.zeros(()))


def _aligned(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    values: dict[str, Tensor],
    particles: Particles,
) -> dict[str, Tensor]:
    """True values with exchangeable components in the order of q's."""
    if structure.data_plate is not None:
        return values  # components are parameters, which truth and q share
    latents = {n: v for n, v in values.items() if n in structure.latents}

    def log_joint(some: Mapping[str, Tensor]) -> float:
        return float(_log_joint(model, guide, batch, structure, some).sum())

    axes = exchangeable_axes(model, batch, structure, latents, log_joint)
    draws = {n: d.value for n, d in particles.site_draws.items()}
    return values | align(latents, draws, axes)


def _rank(z: Tensor, truth: Tensor) -> Tensor:
    """#{z_l < z*} of z (L, N, d) against truth (1, N, d), ties broken at random: (N, d)."""
    below, tied = (z < truth).sum(0), (z == truth).sum(0)
    return below + (torch.rand(tied.shape) * (tied + 1)).long()


@dataclass(frozen=True)
class VsbcSymmetry:
    """Marginal probabilities of simulated truths under refitted guides.

    Attributes:
        probabilities: quantity -> (n,) Q(z < z*) of each fit.
    """

    probabilities: dict[str, Floats]

    @property
    def p_values(self) -> dict[str, float]:
        """Quantity -> p-value of Wilcoxon's signed-rank test on Q(z < z*) − 1/2."""
        from scipy.stats import wilcoxon

        return {n: float(wilcoxon(p - 0.5).pvalue) for n, p in self.probabilities.items()}

    def findings(self) -> list[Finding]:
        p_values = self.p_values
        worst = min(p_values, key=lambda n: p_values[n])
        low = self.probabilities[worst].mean() > 0.5
        return [
            VSBC_P_VALUE.finding(
                QUESTION,
                "VSBC symmetry, p-value",
                min(1.0, p_values[worst] * len(p_values)),
                why=f"Location only. Least symmetric: {worst}, whose estimates are too "
                f"{'low' if low else 'high'} on average.",
                remedy="A richer guide; correct its draws by importance weights.",
            )
        ]


def vsbc(
    model: Program,
    refit: Callable[..., Program],
    *batch: Any,
    num_simulations: int = 100,
    num_draws: int = 199,
    seed: int = 0,
) -> VsbcSymmetry:
    """Fit `num_simulations` simulated data sets, `refit(*batch) -> guide`, and test symmetry.

    Global sites are tested, and row 0 of local ones, so that all simulations are independent.
    """
    probabilities: dict[str, list[float]] = {}
    with isolated_rng(seed):
        for _ in range(num_simulations):
            with torch.no_grad():
                values, simulated = simulate(model, *batch)
            guide = refit(*simulated)
            with torch.no_grad():
                structure = analyze_for_particles(model, guide, simulated, {}, num_draws)
                particles = draw_particles(model, guide, simulated, {}, structure, num_draws)
                values = _aligned(model, guide, simulated, structure, values, particles)
            for name, draws in particles.site_draws.items():
                z = by_row(draws.value, draws.row_axis)[:, :1]
                truth = values[name].reshape(1, *draws.value.shape[1:])
                r = _rank(z, by_row(truth, draws.row_axis)[:, :1])[0]
                for i, rank in enumerate(r.tolist()):
                    key = f"{name}[{i}]" if len(r) > 1 else name
                    probabilities.setdefault(key, []).append((rank + 0.5) / (num_draws + 1))
    return VsbcSymmetry({name: np.array(p) for name, p in probabilities.items()})


def _run_vsbc(context: Context) -> VsbcSymmetry:
    return vsbc(
        context.model,
        refit_guide(context.pair),
        *context.train,
        num_simulations=context.refits,
        seed=context.seed,
    )


SBC = Diagnostic(
    slug="calibration",
    question=QUESTION,
    title="simulation-based calibration",
    run=lambda c: sbc(c.model, c.guide, *c.rows, seed=c.seed),
    spoils=("uncertainty",),
)
VSBC = Diagnostic(
    slug="vsbc",
    question=QUESTION,
    title="calibration by refitting",
    run=_run_vsbc,
    applies=lambda c: c.refits > 0,
    spoils=("uncertainty",),
)
