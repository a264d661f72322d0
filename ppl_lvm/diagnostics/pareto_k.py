"""Is q a usable posterior? Pareto k̂, effective sample size, importance-corrected moments.

With S draws z_s ~ q(z | x_n) and weights w_sn = p(x_n, z_s) / q(z_s | x_n), the tail of the
weights has about 1/k finite moments. k̂ (Pareto-smoothed importance sampling) is fitted to each
datum's weights, all data at once; with global latents there is one joint weight and one k̂. The
smoothed, normalised weights w̄ give

    ESS_n = 1 / Σ_s w̄_sn²,    E_p[z] ≈ Σ_s w̄_sn z_sn,    Var_p[z] likewise,

to be held beside q's own moments. k̂ sees too narrow a q late (a Gaussian whose sd is f times too
small has k = 1 − f²: .36 at f = .8), and modes that q never visits not at all: the corrected
standard deviation shows the first, simulation-based calibration the second. A high joint k̂ in
many dimensions need not mean bad marginals (Dhaka et al. 2021).

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
from numpy.typing import NDArray

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, cannot_say, graded
from ppl_lvm.particles import analyze_for_particles, draw_particles
from ppl_lvm.particles.structure import Program
from ppl_lvm.posterior.psis import psis

QUESTION = "Is q a usable posterior?"
CHUNK = 200_000  # log-weights drawn at once
EQUAL = 1e-3  # log-weights within this are equal up to rounding: a "tail" of it means nothing
FEW = 30  # effective draws below which a corrected sd is noise
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of one site: q's own mean and sd, and those corrected by importance weights, (N, ...)."""

    q_mean: Floats
    q_sd: Floats
    mean: Floats
    sd: Floats


@dataclass(frozen=True)
class ParetoK:
    """Attributes:
    k: (N,) per row, or (1,) for a joint weight.
    ess: (N,) effective draws of the smoothed weights.
    moments: site -> `Moments`; discrete sites are left out.
    num_draws: S.
    joint: whether the weights are joint over all data.
    """

    k: Floats
    ess: Floats
    moments: dict[str, Moments]
    num_draws: int
    joint: bool

    @property
    def share_bad(self) -> float:
        """Share of data with k̂ > 0.7."""
        return float((self.k > 0.7).mean())

    @property
    def k_error(self) -> float:
        """Standard deviation of one k̂ near 0.7 with S draws: .21 at S = 200, .15 at 1000 and .12
        at 4000 by simulation, which this power law goes through."""
        return 0.21 * (200 / self.num_draws) ** 0.19

    def sd_ratio(self) -> float:
        """Median over data, worst over dimensions: |log(corrected sd / q's sd)|, exponentiated."""
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
        if self.joint:
            k = float(self.k[0])
            return Finding(
                QUESTION,
                "joint Pareto k̂",
                k,
                self.k_error,
                "good ≤ 0.5, bad > 0.7",
                "Vehtari et al. 2024, arXiv:1507.02646",
                graded(k, 0.5, 0.7),
                f"One weight over all latents, {self.num_draws} draws; a high joint k̂ need not "
                "mean bad marginals.",
                "" if k <= 0.5 else remedy,
            )
        share, N = self.share_bad, len(self.k)
        return Finding(
            QUESTION,
            "share of data with Pareto k̂ > 0.7",
            share,
            math.sqrt(share * (1 - share) / N),
            "good ≤ 0.05, bad > 0.2; k̂ itself: 0.7",
            f"k̂: Vehtari et al. 2024, arXiv:1507.02646; shares: {PROJECT_DEFAULT}",
            graded(share, 0.05, 0.2),
            f"Median k̂ {np.median(self.k):.2f}, largest {self.k.max():.2f} over {N} data, "
            f"{self.num_draws} draws each.",
            "" if share <= 0.05 else remedy,
        )

    def _ess_finding(self) -> Finding:
        relative = float(np.median(self.ess)) / self.num_draws
        spread = float(np.std(self.ess)) / self.num_draws / math.sqrt(len(self.ess))
        return Finding(
            QUESTION,
            "effective draws / draws, median over data",
            relative,
            1.25 * spread if len(self.ess) > 1 else None,
            "good ≥ 0.1, bad < 0.01",
            PROJECT_DEFAULT,
            graded(-relative, -0.1, -0.01),
            f"Of {self.num_draws} draws from q, {np.median(self.ess):.0f} count in expectations "
            f"under the posterior (worst datum {self.ess.min():.0f}).",
            "" if relative >= 0.1 else "Use a richer guide, or more draws where it must serve.",
        )

    def _sd_finding(self) -> Finding:
        name = "posterior sd against q's sd, factor"
        effective = float(np.median(self.ess))
        if not self.moments:
            return cannot_say(QUESTION, name, "No continuous latent.")
        if effective < FEW:
            return cannot_say(
                QUESTION, name, f"{effective:.0f} effective draws tell no standard deviation."
            )
        ratio = self.sd_ratio()
        return Finding(
            QUESTION,
            name,
            ratio,
            ratio / math.sqrt(2 * effective),
            "good ≤ 1.25, bad > 1.5",
            PROJECT_DEFAULT,
            graded(ratio, 1.25, 1.5),
            "Median over data of the importance-corrected sd over q's own (or its inverse), in "
            "the worst dimension.",
            "" if ratio <= 1.25 else "Report the corrected moments; use a richer guide.",
        )


def pareto_k(
    model: Program, guide: Program, *batch: Any, num_draws: int = 4000, seed: int = 0
) -> ParetoK:
    """k̂, effective draws and corrected moments of every datum, from S = `num_draws` draws.

    Memory: S · N · (1 + D) numbers. Give fewer rows where that is too much.

    Raises:
        CannotSayError: the guide draws nothing, so that the bound is exact.
    """
    with isolated_rng(seed), torch.no_grad():
        plan = analyze_for_particles(model, guide, batch, {}, num_draws)
        if not plan.latents:
            raise CannotSayError("The guide draws nothing: every latent is summed out exactly.")
        parts = -(-num_draws * len(batch[0]) // CHUNK)
        weights, values = [], []
        # Of equal size: a rest of one draw would run without the particle plate.
        for size in np.diff(np.linspace(0, num_draws, parts + 1).round().astype(int)).tolist():
            p = draw_particles(model, guide, batch, {}, plan, size)
            weights.append(p.log_w.double().numpy())
            values.append(
                {n: d.value.numpy() for n, d in p.site_draws.items() if _is_smooth(d.value)}
            )
    raw = np.concatenate(weights).T  # (N, S)
    log_w, k = psis(raw)
    k[np.ptp(raw, axis=1) < EQUAL] = -np.inf
    joint = plan.data_plate is None
    if not np.isfinite(log_w).all() and np.isnan(log_w).any():
        raise CannotSayError("Some log-weights are not finite: q draws where log p is undefined.")
    moments = {}
    for name in values[0]:
        z = np.concatenate([v[name] for v in values]).astype(np.float64)
        found = _moments(z, np.exp(log_w), None if joint else plan.nesting)
        if found is not None:
            moments[name] = found
    return ParetoK(k, 1 / np.exp(2 * log_w).sum(1), moments, num_draws, joint)


def _is_smooth(value: torch.Tensor) -> bool:
    return value.is_floating_point()


def _moments(z: Floats, w: Floats, nesting: int | None) -> Moments | None:
    """Of draws z (S, plates, event) with normalised weights w (N, S), or (1, S) if joint.

    `nesting` is the number of plate dimensions, the data's among them; None if joint.
    """
    S, N = len(z), len(w)
    sd = z.std(0)
    if not (sd > 0).any():
        return None  # a point estimate
    if nesting is None:
        flat = z.reshape(S, 1, -1)
    else:
        axis = next((a for a in range(1, 1 + nesting) if z.shape[a] == N), None)
        if axis is None:
            return None  # the same for every datum
        flat = np.moveaxis(z, axis, 1).reshape(S, N, -1)
    mean = np.einsum("ns,snd->nd", w, flat)
    variance = np.einsum("ns,snd->nd", w, (flat - mean) ** 2)
    return Moments(flat.mean(0), flat.std(0), mean, np.sqrt(variance))
