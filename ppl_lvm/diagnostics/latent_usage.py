"""Latent usage: active units, mutual information, rate and distortion.

    A_u = Var_x(E_q[z_u | x])                     a unit is active above 0.01
    R = E_x KL(q(z | x) ‖ p(z)),  D = −E log p(x | z),  ELBO = −(R + D)
    R = I_q(x; z) + KL(q(z) ‖ p(z)),  q(z) = 1/N Σ_m q(z | x_m)

I is computed from log q(z_n | x_m) of all N² pairs, m = n included. It cannot exceed log N: near
that ceiling it is a lower bound. With I below 0.1 nats z carries no information about x: the
posterior has collapsed to the prior, however high the bound is.

References:
    Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519 (active units)
    Hoffman, Johnson (2016). ELBO surgery. NIPS workshop on approximate Bayesian inference.
    Alemi et al. (2018). Fixing a broken ELBO. https://arxiv.org/abs/1711.00464
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.distributions import family
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.base import Diagnostic
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, VECTORIZE, Finding, Threshold
from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles
from ppl_lvm.particles.layout import as_particles, by_row, row_axis
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import ReplayValues, log_prob, plate_dim, table, trace_program
from ppl_lvm.posterior.evidence import standard_error

QUESTION = "Is the latent space used?"
ACTIVE = 0.01
NEAR_CEILING = 0.5  # nats below log N from which I is only a lower bound
CELLS = 2**24  # floats in one block of pairs
REMEDY = "Anneal the KL term (kl_annealing), weaken the decoder, lower its fixed noise."

ACTIVE_SHARE = Threshold(
    good=0.5,
    bad=0.0,
    larger_is_better=True,
    source=f"Burda et al. 2016, arXiv:1509.00519; shares: {PROJECT_DEFAULT}",
    text="a unit: A > 0.01; good ≥ half of them, bad none",
)
RATE = Threshold(good=0.1, bad=0.1, larger_is_better=True, text="bad < 0.1")
INFORMATION = Threshold(good=0.1, bad=0.1, larger_is_better=True, text="bad < 0.1 (collapse)")
AGGREGATE_KL = Threshold(good=0.5, bad=2.0, errors=2)


@dataclass(frozen=True)
class LatentUse:
    """Use of the local latents, nats per row; errors are standard errors over rows.

    Attributes:
        names: the D scalar local latents ("z[0]"), in the guide's order.
        active: A_u (D,).
        active_error: (D,).
        kl: KL of each scalar's marginal q against its prior (D,), NaN without a closed form.
        rate: R.
        distortion: D.
        information: I_q(x; z); None where the programs do not run under a particle plate.
        rows: N.
    """

    names: tuple[str, ...]
    active: Tensor
    active_error: Tensor
    kl: Tensor
    rate: float
    rate_error: float
    distortion: float
    distortion_error: float
    information: float | None
    information_error: float
    rows: int

    @property
    def elbo(self) -> float:
        return -(self.rate + self.distortion)

    @property
    def num_active(self) -> int:
        return int((self.active > ACTIVE).sum())

    @property
    def at_ceiling(self) -> bool:
        limit = math.log(self.rows) - NEAR_CEILING
        return self.information is not None and self.information > limit

    @property
    def collapsed(self) -> bool:
        known = self.information is not None and not self.at_ceiling
        return not self.num_active or (known and (self.information or 0.0) < INFORMATION.bad)

    def findings(self) -> list[Finding]:
        used, D = self.num_active, len(self.active)
        unused = [n for n, a in zip(self.names, self.active.tolist(), strict=True) if a <= ACTIVE]
        rows = [
            ACTIVE_SHARE.finding(
                QUESTION,
                f"active units of {D}",
                float(used),
                verdict="bad" if used == 0 else "good" if 2 * used >= D else "warning",
                why="All are active." if not unused else f"Not active: {', '.join(unused[:12])}.",
                remedy=REMEDY,
            ),
            RATE.finding(
                QUESTION,
                "rate R, nats per row",
                self.rate,
                self.rate_error,
                why=f"Distortion {self.distortion:.3f} ± {self.distortion_error:.3f}; "
                f"−(R + D) = ELBO = {self.elbo:.3f}.",
                remedy=REMEDY,
            ),
        ]
        return rows + self._information_findings()

    def _information_findings(self) -> list[Finding]:
        if self.information is None:
            why = "The programs do not run under a particle plate."
            return [Finding(question=QUESTION, name="I(x; z), nats", why=why, remedy=VECTORIZE)]
        gap = self.rate - self.information
        error = math.hypot(self.rate_error, self.information_error)
        return [
            INFORMATION.finding(
                QUESTION,
                "mutual information I(x; z), nats",
                self.information,
                self.information_error,
                why=f"{self.rows} rows show at most log {self.rows} = {math.log(self.rows):.2f}"
                + ("; it is at this ceiling, a lower bound." if self.at_ceiling else ".")
                + (" The posterior has collapsed to the prior." if self.collapsed else ""),
                remedy=REMEDY if self.collapsed else "",
            ),
            AGGREGATE_KL.finding(
                QUESTION,
                "KL(q(z) ‖ p(z)) of the aggregate posterior, nats",
                gap,
                error,
                verdict="unknown" if self.at_ceiling else None,
                why="I is at its ceiling log N; this is an upper bound. Pass more rows."
                if self.at_ceiling
                else "Distance of the data's latents from the prior that samples are drawn from.",
                remedy=""
                if self.at_ceiling
                else "Samples from the prior will not look like data: learn the prior.",
            ),
        ]


def latent_use(
    model: Program, guide: Program, *batch: Any, num_draws: int = 128, seed: int = 0
) -> LatentUse:
    """Measure how q uses the local latents of `batch`.

    Raises:
        CannotSayError: no local latents in the guide, global ones, or enumerated sites that
            depend on z's prior, so that log p(z) and the likelihood cannot be separated.
    """
    with isolated_rng(seed), torch.no_grad():
        structure = analyze_for_particles(model, guide, batch, {}, num_draws)
        if structure.data_plate is None or not set(structure.latents) - structure.constant:
            raise CannotSayError(
                "The guide has no local latents (nothing to encode).", verdict="not applicable"
            )
        p = draw_particles(model, guide, batch, {}, structure, num_draws)
        draws = {n: d for n, d in p.site_draws.items() if not d.is_constant}
        N = p.log_w.shape[1]
        z = {n: by_row(d.value, d.row_axis) for n, d in draws.items()}  # (S, N, d)
        active, active_error = active_units(torch.cat([v.double() for v in z.values()], -1))
        log_p = [d.log_p for d in draws.values() if d.log_p is not None]
        if len(log_p) < len(draws):
            raise CannotSayError(
                "Enumerated sites stand between z's prior and the likelihood.",
                verdict="not applicable",
            )
        log_q = [d.log_q for d in draws.values()]
        rate = sum((q - prior for q, prior in zip(log_q, log_p, strict=True)), torch.zeros(()))
        rate = rate.double().mean(0)  # (N,)
        assert p.log_likelihood is not None
        distortion = -p.log_likelihood.double().mean(0)
        information = None
        if structure.vectorized:
            information = _information(guide, batch, structure, p, N)
        widths = {n: v.shape[-1] for n, v in z.items()}
        kl = _marginal_kl(model, guide, batch, widths, structure.data_plate)
    return LatentUse(
        names=tuple(f"{n}[{i}]" for n, width in widths.items() for i in range(width)),
        active=active,
        active_error=active_error,
        kl=kl,
        rate=float(rate.mean()),
        rate_error=standard_error(rate),
        distortion=float(distortion.mean()),
        distortion_error=standard_error(distortion),
        information=None if information is None else float(information.mean()),
        information_error=math.nan if information is None else standard_error(information),
        rows=N,
    )


def active_units(z: Tensor) -> tuple[Tensor, Tensor]:
    """A_u (D,) and its standard error, from draws z (S, N, D).

    The variance of means of S draws is too large by E_x[Var_q(z_u | x)] / S, which is subtracted.
    """
    S, N = z.shape[:2]
    means, noise = z.mean(0), z.var(0).mean(0) / S
    square = (means - means.mean(0)) ** 2
    return means.var(0) - noise, square.std(0) / math.sqrt(N)


def _information(
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    p: Particles,
    N: int,
    repeats: int = 4,
) -> Tensor:
    """log q(z_n | x_n) − log 1/N Σ_m q(z_n | x_m), averaged over a few draws: (N,)."""
    names = [n for n, d in p.site_draws.items() if not d.is_constant]
    width = sum(p.site_draws[n].value[0].numel() // N for n in names)
    chunk = max(1, min(N, CELLS // (N * width)))
    total = torch.zeros(N, dtype=torch.float64)
    for s in range(repeats):
        blocks = []
        for start in range(0, N, chunk):
            rows = slice(start, min(start + chunk, N))
            values = {}
            for n in names:
                draws = p.site_draws[n]
                assert draws.row_axis is not None  # every random site is in the data plate
                values[n] = as_particles(draws.value[s : s + 1], draws.row_axis, rows)
            blocks.append(_log_q(guide, batch, structure, values, rows.stop - start))
        pairs = torch.cat(blocks).double()  # (N, N): row n holds log q(z_n | x_m) over m
        total += pairs.diagonal() - (pairs.logsumexp(1) - math.log(N))
    return total / repeats


def _log_q(
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    values: dict[str, Tensor],
    particles: int,
) -> Tensor:
    """log q (particles, N) of fixed values."""
    sites = trace_program(
        guide,
        batch,
        {},
        particles=particles,
        nesting=structure.nesting,
        replay=ReplayValues(values),
    )
    tables = [
        table(log_prob(sites[n]), structure.nesting, plate_dim(sites[n], structure.data_plate))
        for n in values
    ]
    return torch.stack(tables).sum(0)


def _marginal_kl(
    model: Program, guide: Program, batch: Batch, widths: dict[str, int], plate: frozenset[str]
) -> Tensor:
    """KL(q(z_u | x) ‖ p(z_u)) averaged over rows, of Gaussian marginals; NaN for others: (D,)."""
    guide_sites = trace_program(guide, batch, {}, particles=None, nesting=0)
    values = ReplayValues({n: s["value"] for n, s in guide_sites.items()})
    model_sites = trace_program(model, batch, {}, particles=None, nesting=0, replay=values)
    parts = []
    for name, width in widths.items():
        q, p = guide_sites[name]["fn"], model_sites[name]["fn"]
        if not (_is_gaussian(q) and _is_gaussian(p)):
            parts.append(torch.full((width,), math.nan, dtype=torch.float64))
            continue
        ratio = (q.variance / p.variance).double()
        shift = ((q.mean - p.mean) ** 2 / p.variance).double()
        kl = (ratio + shift - 1 - ratio.log()) / 2
        rows = by_row(kl[None], row_axis(guide_sites[name], plate))
        parts.append(rows[0].mean(0))
    return torch.cat(parts)


def _is_gaussian(fn: Any) -> bool:
    return family(fn) in ("Normal", "MultivariateNormal", "LowRankMultivariateNormal")


LATENT_USAGE = Diagnostic(
    slug="latents",
    question=QUESTION,
    title="use of the latent space",
    run=lambda c: latent_use(c.model, c.guide, *c.rows, seed=c.seed),
    spoils=("codes",),
)
