"""Is the latent space used? Active units, information, rate and distortion.

    A_u = Var_x(E_q[z_u | x])                     a unit is active above 0.01
    R = E_x KL(q(z | x) ‖ p(z)),  D = −E log p(x | z),  ELBO = −(R + D)
    R = I_q(x; z) + KL(q(z) ‖ p(z)),  q(z) = 1/N Σ_m q(z | x_m)

I is computed from log q(z_n | x_m) of all N² pairs, m = n included. It cannot exceed log N: near
that ceiling it is a lower bound. With I below 0.1 nats z says nothing about x: the posterior has
collapsed to the prior, however good the bound may be.

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
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles
from ppl_lvm.particles.layout import as_particles, by_row
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import ReplayValues, log_prob, plate_dim, table, trace_program

QUESTION = "Is the latent space used?"
ACTIVE = 0.01
COLLAPSED = 0.1  # nats
NEAR_CEILING = 0.5  # nats below log N from which I is only a lower bound
CELLS = 2**24  # numbers in one block of pairs


@dataclass(frozen=True)
class LatentUse:
    """Nats per row; errors are standard errors over data.

    Attributes:
        active: A_u (D,), all local latents' numbers in the guide's order; `names` says which.
        active_error: (D,).
        kl: KL of each number's marginal q against its prior (D,), NaN where it has no closed form.
        rate, distortion: R and D.
        rate_error, distortion_error: their errors.
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
    def aggregate_kl(self) -> float | None:
        """KL(q(z) ‖ p(z)) = R − I."""
        return None if self.information is None else self.rate - self.information

    @property
    def at_ceiling(self) -> bool:
        limit = math.log(self.rows) - NEAR_CEILING
        return self.information is not None and self.information > limit

    @property
    def collapsed(self) -> bool:
        known = self.information is not None and not self.at_ceiling
        return not self._used() or (known and (self.information or 0.0) < COLLAPSED)

    def _used(self) -> int:
        return int((self.active > ACTIVE).sum())

    def findings(self) -> list[Finding]:
        used, D = self._used(), len(self.active)
        unused = [n for n, a in zip(self.names, self.active.tolist(), strict=True) if a <= ACTIVE]
        rows = [
            Finding(
                QUESTION,
                f"active units of {D}",
                float(used),
                None,
                "a unit: A > 0.01; good ≥ half of them, bad none",
                f"Burda et al. 2016, arXiv:1509.00519; shares: {PROJECT_DEFAULT}",
                "bad" if used == 0 else "good" if 2 * used >= D else "warning",
                "All are active." if not unused else f"Not active: {', '.join(unused[:12])}.",
                "" if 2 * used >= D else _REMEDY,
            ),
            Finding(
                QUESTION,
                "rate R, nats per row",
                self.rate,
                self.rate_error,
                f"bad < {COLLAPSED}",
                PROJECT_DEFAULT,
                graded(-self.rate, -COLLAPSED, -COLLAPSED),
                f"Distortion {self.distortion:.3f} ± {self.distortion_error:.3f}; "
                f"−(R + D) = ELBO = {self.elbo:.3f}.",
                "" if self.rate >= COLLAPSED else _REMEDY,
            ),
        ]
        return rows + self._information_findings()

    def _information_findings(self) -> list[Finding]:
        if self.information is None:
            why = "The programs do not run under a particle plate."
            return [Finding(QUESTION, "I(x; z), nats", None, None, "", "", "unknown", why, "")]
        ceiling, gap = math.log(self.rows), self.rate - self.information
        error = math.hypot(self.rate_error, self.information_error)
        return [
            Finding(
                QUESTION,
                "mutual information I(x; z), nats",
                self.information,
                self.information_error,
                f"bad < {COLLAPSED} (collapse)",
                PROJECT_DEFAULT,
                graded(-self.information, -COLLAPSED, -COLLAPSED),
                f"At most log {self.rows} = {ceiling:.2f} can be seen"
                + ("; it is at this ceiling, a lower bound." if self.at_ceiling else ".")
                + (" The posterior has collapsed to the prior." if self.collapsed else ""),
                _REMEDY if self.collapsed else "",
            ),
            Finding(
                QUESTION,
                "KL(q(z) ‖ p(z)) of the aggregate, nats",
                gap,
                error,
                "good ≤ 0.5, bad > 2",
                PROJECT_DEFAULT,
                "unknown" if self.at_ceiling else graded(gap - 2 * error, 0.5, 2.0),
                "I is at its ceiling log N; this is an upper bound. Give more rows."
                if self.at_ceiling
                else "How far codes of the data are from the prior that samples are drawn from.",
                ""
                if self.at_ceiling or gap <= 0.5
                else "Samples from the prior will not look like data: learn the prior.",
            ),
        ]


_REMEDY = "Anneal the KL term (kl_annealing), weaken the decoder, lower its fixed noise."


def latent_use(
    model: Program, guide: Program, *batch: Any, num_draws: int = 128, seed: int = 0
) -> LatentUse:
    """Figures on how q uses the local latents of `batch`.

    Raises:
        CannotSayError: no local latent in the guide, global latents, or log p(z) apart from the
            likelihood cannot be had (enumerated sites depend on z's prior).
    """
    with isolated_rng(seed), torch.no_grad():
        plan = analyze_for_particles(model, guide, batch, {}, num_draws)
        if plan.data_plate is None or not set(plan.latents) - plan.constant:
            raise CannotSayError("The guide has no local latents of its own (nothing to encode).")
        p = draw_particles(model, guide, batch, {}, plan, num_draws)
        moving = {n: d for n, d in p.site_draws.items() if not d.is_constant}
        N = p.log_w.shape[1]
        z = {n: by_row(d.value, N, plan.nesting) for n, d in moving.items()}  # (S, N, d)
        active, active_error = active_units(torch.cat([v.double() for v in z.values()], -1))
        log_p = [d.log_p for d in moving.values() if d.log_p is not None]
        if len(log_p) < len(moving):
            raise CannotSayError("Enumerated sites stand between z's prior and the likelihood.")
        log_q = [d.log_q for d in moving.values()]
        rate = sum((q - prior for q, prior in zip(log_q, log_p, strict=True)), torch.zeros(()))
        rate = rate.double().mean(0)  # (N,)
        assert p.log_likelihood is not None
        distortion = -p.log_likelihood.double().mean(0)
        information = None
        if plan.vectorized:
            information = _information(guide, batch, plan, p, N)
        kl = _marginal_kl(model, guide, batch, plan, {n: v.shape[-1] for n, v in z.items()})
    return LatentUse(
        names=tuple(f"{n}[{i}]" for n, v in z.items() for i in range(v.shape[-1])),
        active=active,
        active_error=active_error,
        kl=kl,
        rate=float(rate.mean()),
        rate_error=_error(rate),
        distortion=float(distortion.mean()),
        distortion_error=_error(distortion),
        information=None if information is None else float(information.mean()),
        information_error=math.nan if information is None else _error(information),
        rows=N,
    )


def _error(per_row: Tensor) -> float:
    return float(per_row.std() / math.sqrt(len(per_row))) if len(per_row) > 1 else math.nan


def active_units(z: Tensor) -> tuple[Tensor, Tensor]:
    """A_u (D,) and its standard error, from draws z (S, N, D).

    The variance of S-draw means is too large by E_x[Var_q(z_u | x)] / S, which is taken off.
    """
    S, N = z.shape[:2]
    means, noise = z.mean(0), z.var(0).mean(0) / S
    square = (means - means.mean(0)) ** 2
    return means.var(0) - noise, square.std(0) / math.sqrt(N)


def _information(
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
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
        rows = []
        for start in range(0, N, chunk):
            which = slice(start, min(start + chunk, N))
            values = {
                n: as_particles(p.site_draws[n].value[s : s + 1], N, plan.nesting, which)
                for n in names
            }
            rows.append(_log_q(guide, batch, plan, values, which.stop - start))
        pairs = torch.cat(rows).double()  # (N, N): row n holds log q(z_n | x_m) over m
        total += pairs.diagonal() - (pairs.logsumexp(1) - math.log(N))
    return total / repeats


def _log_q(
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    values: dict[str, Tensor],
    particles: int,
) -> Tensor:
    """log q (particles, N) of given values."""
    sites = trace_program(
        guide, batch, {}, particles=particles, nesting=plan.nesting, replay=ReplayValues(values)
    )
    found = [
        table(log_prob(sites[n]), plan.nesting, plate_dim(sites[n], plan.data_plate))
        for n in values
    ]
    return torch.stack(found).sum(0)


def _marginal_kl(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    widths: dict[str, int],
) -> Tensor:
    """KL(q(z_u | x) ‖ p(z_u)) averaged over data, of Gaussian marginals; NaN for others: (D,)."""
    drawn = trace_program(guide, batch, {}, particles=None, nesting=0)
    known = ReplayValues({n: s["value"] for n, s in drawn.items()})
    prior = trace_program(model, batch, {}, particles=None, nesting=0, replay=known)
    parts = []
    for name, width in widths.items():
        q, p = drawn[name]["fn"], prior[name]["fn"]
        if not (_gaussian(q) and _gaussian(p)):
            parts.append(torch.full((width,), math.nan, dtype=torch.float64))
            continue
        ratio = (q.variance / p.variance).double()
        shift = ((q.mean - p.mean) ** 2 / p.variance).double()
        kl = (ratio + shift - 1 - ratio.log()) / 2
        rows = by_row(kl[None], len(batch[0]), max(len(q.batch_shape), 1))
        parts.append(rows[0].mean(0))
    return torch.cat(parts)


def _gaussian(fn: Any) -> bool:
    return family(fn) in ("Normal", "MultivariateNormal", "LowRankMultivariateNormal")
