"""Pareto k̂, effective sample size and importance-corrected moments.

With S draws z_s ~ q(z | x_n) and weights w_sn = p(x_n, z_s) / q(z_s | x_n), the weights have about
1/k finite moments. k̂ (Pareto-smoothed importance sampling) is fitted to the weights of each row,
all rows at once; with global latents there is one joint weight and one k̂. The smoothed, normalized
weights w̄ give

    ESS_n = 1 / Σ_s w̄_sn²,    E_p[z] ≈ Σ_s w̄_sn z_sn,    Var_p[z] likewise,

to be compared with q's moments. k̂ reacts late to a q that is too narrow (a Gaussian whose sd is f
times too small has k = 1 − f²: .36 at f = .8), and not at all to modes that q never visits. The
corrected standard deviation shows the first, simulation-based calibration the second. A high joint
k̂ in many dimensions need not mean bad marginals (Dhaka et al. 2021).

References:
    Yao, Vehtari, Simpson, Gelman (2018). Yes, but did it work? https://arxiv.org/abs/1802.02538
    Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling.
    https://arxiv.org/abs/1507.02646
    Dhaka et al. (2021). Challenges and opportunities in high-dimensional variational inference.
    https://arxiv.org/abs/2103.01085
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Floats, Program
from ppl_lvm.diagnostics.base import Diagnostic
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.particles import analyze_for_particles, draw_particles
from ppl_lvm.posterior.psis import psis

QUESTION = "Is q a usable posterior?"
CHUNK = 200_000  # log-weights drawn at once
ROUNDING = 1e-3  # log-weights closer than this are equal up to rounding and have no tail
MIN_ESS = 30  # below, a corrected sd is noise

K_HAT_SOURCE = "Vehtari et al. 2024, arXiv:1507.02646"
JOINT_K_HAT = Threshold(good=0.5, bad=0.7, source=K_HAT_SOURCE)
SHARE_OF_HIGH_K_HAT = Threshold(
    good=0.05,
    bad=0.2,
    source=f"k̂: {K_HAT_SOURCE}; shares: {PROJECT_DEFAULT}",
    text="good ≤ 0.05, bad > 0.2; k̂ itself: 0.7",
)
SHARE_NAME = "share of rows with Pareto k̂ > 0.7"
RELATIVE_ESS = Threshold(good=0.1, bad=0.01, larger_is_better=True)
SD_RATIO = Threshold(good=1.25, bad=1.5)


def number_or_exact(k: float) -> str:
    """A k̂ as text; −∞ means that all weights are equal."""
    return "exact" if k == -math.inf else f"{k:.2f}"


@dataclass(frozen=True)
class Moments:
    """Moments of one site: q's mean and sd, and the importance-corrected ones, (N, ...)."""

    q_mean: Floats
    q_sd: Floats
    mean: Floats
    sd: Floats


@dataclass(frozen=True)
class ParetoK:
    """Quality of q's importance weights.

    Attributes:
        k: (N,) per row, or (1,) for a joint weight.
        ess: (N,) effective sample size of the smoothed weights.
        moments: continuous site -> `Moments`.
        num_draws: S.
        joint: True if one weight covers all rows.
    """

    k: Floats
    ess: Floats
    moments: dict[str, Moments]
    num_draws: int
    joint: bool

    @property
    def share_bad(self) -> float:
        """Share of rows with k̂ > 0.7."""
        return float((self.k > 0.7).mean())

    @property
    def k_error(self) -> float:
        """Standard deviation of one k̂ near 0.7 with S draws.

        A power law through simulated values: .21 at S = 200, .15 at 1000 and .12 at 4000.
        """
        return 0.21 * (200 / self.num_draws) ** 0.19

    def sd_ratio(self) -> float:
        """exp |log(corrected sd / q's sd)|: median over rows, worst over dimensions."""
        worst = 0.0
        for m in self.moments.values():
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.abs(np.log(m.sd / m.q_sd))
            ratio = ratio.reshape(ratio.shape[0] if not self.joint else 1, -1)
            worst = max(worst, float(np.median(np.nan_to_num(ratio, posinf=0), axis=0).max()))
        return math.exp(worst)

    def findings(self) -> list[Finding]:
        return [self._k_finding(), self._ess_finding(), self._sd_finding()]

    def _k_finding(self) -> Finding:
        remedy = (
            "Widen q: a richer guide (full covariance, flow), or importance-weighted training; "
            "do not use its moments uncorrected."
        )
        if self.k.max() == -math.inf:
            why = "All importance weights are equal: q is the posterior."
            name = "joint Pareto k̂" if self.joint else SHARE_NAME
            return Finding(question=QUESTION, name=name, verdict="exact", why=why)
        if self.joint:
            return JOINT_K_HAT.finding(
                QUESTION,
                "joint Pareto k̂",
                float(self.k[0]),
                self.k_error,
                why=f"One weight over all latents, {self.num_draws} draws; a high joint k̂ need not "
                "mean bad marginals.",
                remedy=remedy,
            )
        share, N = self.share_bad, len(self.k)
        return SHARE_OF_HIGH_K_HAT.finding(
            QUESTION,
            SHARE_NAME,
            share,
            math.sqrt(share * (1 - share) / N),
            why=f"Median k̂ {number_or_exact(float(np.median(self.k)))}, largest "
            f"{self.k.max():.2f} over {N} rows, {self.num_draws:,} draws each.",
            remedy=remedy,
        )

    def _ess_finding(self) -> Finding:
        spread = float(np.std(self.ess)) / self.num_draws / math.sqrt(len(self.ess))
        return RELATIVE_ESS.finding(
            QUESTION,
            "ESS / draws, median over rows",
            float(np.median(self.ess)) / self.num_draws,
            1.25 * spread if len(self.ess) > 1 else None,
            why=f"{self.num_draws} draws from q are worth {np.median(self.ess):.0f} draws from the "
            f"posterior (worst row {self.ess.min():.0f}).",
            remedy="A richer guide, or more draws.",
        )

    def _sd_finding(self) -> Finding:
        name = "posterior sd against q's sd, factor"
        ess = float(np.median(self.ess))
        if not self.moments or ess < MIN_ESS:
            if not self.moments:
                why = "No continuous latent."
                return Finding(question=QUESTION, name=name, verdict="not applicable", why=why)
            why = f"An ESS of {ess:.0f} is too small for a standard deviation."
            return Finding(question=QUESTION, name=name, why=why, remedy="A richer guide.")
        ratio = self.sd_ratio()
        return SD_RATIO.finding(
            QUESTION,
            name,
            ratio,
            ratio / math.sqrt(2 * ess),
            why="Median over rows of the importance-corrected sd over q's sd (or its inverse), in "
            "the worst dimension.",
            remedy="Report the corrected moments; use a richer guide.",
        )


def pareto_k(
    model: Program, guide: Program, *batch: Any, num_draws: int = 4000, seed: int = 0
) -> ParetoK:
    """k̂, ESS and corrected moments of every row, from S = `num_draws` draws.

    Memory: S · N · (1 + D) floats. Pass fewer rows where that is too much.

    Raises:
        CannotSayError: the guide has no latents, so that the bound is exact.
    """
    with isolated_rng(seed), torch.no_grad():
        structure = analyze_for_particles(model, guide, batch, {}, num_draws)
        if not structure.latents:
            raise CannotSayError(
                "The guide draws nothing: every latent is summed out exactly.", verdict="exact"
            )
        parts = -(-num_draws * len(batch[0]) // CHUNK)
        weights, values = [], []
        axes: dict[str, int | None] = {}
        # Chunks of equal size: a last chunk of one draw would have no particle plate.
        for size in np.diff(np.linspace(0, num_draws, parts + 1).round().astype(int)).tolist():
            p = draw_particles(model, guide, batch, {}, structure, size)
            weights.append(p.log_w.double().numpy())
            axes = {n: d.row_axis for n, d in p.site_draws.items()}
            values.append(
                {n: d.value.numpy() for n, d in p.site_draws.items() if d.value.is_floating_point()}
            )
    raw = np.concatenate(weights).T  # (N, S)
    log_w, k = psis(raw)
    k[np.ptp(raw, axis=1) < ROUNDING] = -np.inf
    joint = structure.data_plate is None
    if np.isnan(log_w).any():
        raise CannotSayError(
            "Some log-weights are not finite: q draws where log p is undefined.",
            "Give q the support of the prior.",
        )
    moments = {}
    for name in values[0]:
        z = np.concatenate([v[name] for v in values]).astype(np.float64)
        of_site = None
        if joint or axes[name] is not None:  # else a point that all rows share
            of_site = _moments(z, np.exp(log_w), None if joint else axes[name])
        if of_site is not None:
            moments[name] = of_site
    return ParetoK(k, 1 / np.exp(2 * log_w).sum(1), moments, num_draws, joint)


def _moments(z: Floats, w: Floats, axis: int | None) -> Moments | None:
    """Moments of draws z (S, plates, event) with normalized weights w (N, S), or (1, S) if joint.

    `axis` is the dimension of the rows; None if the weights are joint. Returns None for a point
    estimate.
    """
    S, N = len(z), len(w)
    if not (z.std(0) > 0).any():
        return None
    flat = z.reshape(S, 1, -1) if axis is None else np.moveaxis(z, axis, 1).reshape(S, N, -1)
    mean = np.einsum("ns,snd->nd", w, flat)
    variance = np.einsum("ns,snd->nd", w, (flat - mean) ** 2)
    return Moments(flat.mean(0), flat.std(0), mean, np.sqrt(variance))


PARETO_K = Diagnostic(
    slug="khat",
    question=QUESTION,
    title="Pareto k̂",
    run=lambda c: pareto_k(c.model, c.guide, *c.rows, seed=c.seed),
    spoils=("uncertainty",),
)
