"""Does it reproduce the data? Each datum predicted from all others, by smoothed weights.

With draws θ_s ~ q of the global latents, l_sn = log p(x_n | θ_s), and smoothed, normalised weights

    w_sn ∝ p(x, θ_s) / q(θ_s) / p(x_n | θ_s),

    elpd_n = log Σ_s w_sn p(x_n | θ_s),    PIT:  u_np = Σ_s w_sn 1[x_rep,snp < x_np],

x_rep,s ~ p(x | θ_s), ties by a fair draw: u is uniform over n if the model is right, and has not
seen x_n, as the PIT of training rows has.

l is marginal over local latents: discrete ones that the model enumerates exactly, others by
importance weights of K fresh draws a θ_s. The conditional log p(x_n | z_n) with z_n ~ q(z_n | x_n)
has seen x_n, and leave-one-out prediction from it is wrong.

References:
    Magnusson, Andersen, Jonasson, Vehtari (2019). Bayesian leave-one-out cross-validation for
    large data. https://arxiv.org/abs/1904.10679
    Gelfand, Dey, Chang (1992). Model determination using predictive distributions with
    implementation via sampling-based methods. (LOO-PIT)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.seeds import isolated_rng
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, CannotSayError, Finding, cannot_say, graded
from ppl_lvm.diagnostics.predictive_checks import QUESTION, pit_findings
from ppl_lvm.diagnostics.simulation import observed_places
from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.log_prob_tables import run_pair, tabulate
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import Given, Sites, plate_dim, trace_program
from ppl_lvm.posterior import psis
from ppl_lvm.programs.minibatch import DATA_PLATE

LOCAL_PARTICLES = 64
CELLS = 2**27  # comparisons of replicates with data that are kept, a byte each
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LeaveOneOutCheck:
    """Attributes:
    loo: what `ppl_lvm.posterior.psis.loo` gives, corrected for draws from q.
    pit: site -> u (N, P), P(x_rep,np < x_np | the other data); empty where data cannot be drawn.
    """

    loo: psis.Loo
    pit: dict[str, Floats]

    def findings(self) -> list[Finding]:
        k, N = self.loo.k, len(self.loo.k)
        share = float((k > self.loo.good_k).mean())
        rows = [
            Finding(
                QUESTION,
                "leave-one-out: share of data with unreliable k̂",
                share,
                math.sqrt(share * (1 - share) / N),
                f"k̂ ≤ {self.loo.good_k:.2f}; good ≤ 0.05, bad > 0.2",
                f"Magnusson et al. 2019, arXiv:1904.10679; shares: {PROJECT_DEFAULT}",
                graded(share, 0.05, 0.2),
                f"elpd {self.loo.elpd:.2f} ± {self.loo.se:.2f} nats in all, effective parameters "
                f"{self.loo.p:.1f}.",
                ""
                if share <= 0.05
                else "q itself is far from the posterior (see the joint k̂): a richer guide."
                if share > 0.5
                else "Refit without those data, or K-fold cross-validation.",
            )
        ]
        if share <= 0.2:
            return rows + pit_findings(self.pit, "LOO-PIT")
        why = "The weights that leave a datum out are unreliable for too many data."
        return [*rows, *(cannot_say(QUESTION, f"LOO-PIT of {name}", why) for name in self.pit)]


def loo(
    model: Program, guide: Program, *batch: Any, num_draws: int = 1000, seed: int = 0
) -> LeaveOneOutCheck:
    """Expected log predictive density and PIT of each datum given the others.

    Raises:
        CannotSayError: no global latent: the parameters are points that have seen every datum.
    """
    with isolated_rng(seed), torch.no_grad():
        found = pointwise(model, guide, batch, num_draws)
        l, log_p, log_q = (t.double().numpy() for t in (found.l, found.log_p, found.log_q))
        log_w, _ = psis.psis(log_p - log_q - l.T)  # (N, S)
        w = torch.from_numpy(np.exp(log_w)).float()
        pit, places = {}, observed_places(model, *batch) if found.sign else {}
        for name, sign in found.sign.items():  # (S, N, P)
            below = torch.einsum("ns,snp->np", w, (sign > 0).float())
            tied = torch.einsum("ns,snp->np", w, (sign == 0).float())
            u = (below + tied * torch.rand(tied.shape)).clamp(0, 1)
            x = _compared(batch[places[name]])
            pit[name] = torch.where(x.isnan(), math.nan, u.double()).numpy()
    return LeaveOneOutCheck(psis.loo(l, log_p, log_q), pit)


@dataclass(frozen=True)
class Pointwise:
    """Of S draws θ_s ~ q.

    Attributes:
        l: log p(x_n | θ_s) (S, N).
        log_p, log_q: log p(x, θ_s), log q(θ_s), (S,).
        sign: observed site -> (S, N, P) sign of x_np − x_rep,snp, evenly spaced columns where
            there would be too many; empty where data cannot be drawn from the model.
    """

    l: Tensor
    log_p: Tensor
    log_q: Tensor
    sign: dict[str, Tensor]


def pointwise(model: Program, guide: Program, batch: tuple[Any, ...], num_draws: int) -> Pointwise:
    """The densities of every datum under draws of the global latents."""
    plan = analyze_for_particles(model, guide, batch, {}, num_draws)
    if plan.data_plate is not None or not plan.latents:
        raise CannotSayError(
            "The model has no global latent: its parameters are points that have seen every "
            "datum. Judge it on held-out rows."
        )
    sites = trace_program(guide, batch, {}, particles=None, nesting=0)
    local = [n for n in plan.latents if plate_dim(sites[n], DATA_PLATE) is not None]
    if local or not plan.vectorized:
        return _one_by_one(model, guide, batch, num_draws, local)
    return _at_once(model, guide, batch, plan, num_draws)


def _at_once(
    model: Program, guide: Program, batch: tuple[Any, ...], plan: PairStructure, num_draws: int
) -> Pointwise:
    """All draws under a particle plate, the data's dimension kept apart."""
    data = _data(model, batch)
    signs: dict[str, list[Tensor]] = {name: [] for name in data}
    chunk = max(1, 2**22 // len(batch[0]) // 8)
    parts = []
    for start in range(0, num_draws, chunk):
        size = max(2, min(chunk, num_draws - start))
        drawn, *scores = score_globals(model, guide, batch, plan, size)
        _compare(data, signs, model, batch, plan, size, drawn)
        parts.append(scores)
    l, log_p, log_q = (torch.cat(each) for each in zip(*parts, strict=True))
    S = num_draws
    return Pointwise(l[:S], log_p[:S], log_q[:S], {n: torch.cat(t)[:S] for n, t in signs.items()})


def score_globals(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    count: int,
    values: Mapping[str, Tensor] | None = None,
) -> tuple[Sites, Tensor, Tensor, Tensor]:
    """Draws of global latents (or `values` (S, plates, event) of them) and, in one run,
    log p(x_n | θ_s) (S, N), log p(x, θ_s) (S,), log q(θ_s) (S,)."""
    plan, N = replace(plan, data_plate=DATA_PLATE), len(batch[0])
    drawn, scored = run_pair(model, guide, batch, {}, plan, count, values=values)
    tables = tabulate(drawn, scored, plan, True)
    each, shared = torch.zeros(count, N), torch.zeros(count)
    for name, value in tables.log_p.items():
        if value.shape[1] == N and name not in tables.log_q:
            each = each + value
        else:
            shared = shared + value.sum(1)
    if tables.marginal is not None:
        each = each + tables.marginal
    log_q = sum((v.sum(1) for v in tables.log_q.values()), torch.zeros(count))
    return drawn, each, shared + each.sum(1), log_q


def _one_by_one(
    model: Program, guide: Program, batch: tuple[Any, ...], num_draws: int, local: list[str]
) -> Pointwise:
    """Each draw of the globals with K fresh draws of the local latents."""
    data = _data(model, batch)
    signs: dict[str, list[Tensor]] = {name: [] for name in data}
    plan = analyze_for_particles(model, guide, batch, {}, 1)
    K = LOCAL_PARTICLES if local else 1
    l, log_p, log_q = [], [], []
    inner: PairStructure | None = None
    for _ in range(num_draws):
        sites: Sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        own = {n: s for n, s in sites.items() if n not in local}
        shared = {n: s["value"] for n, s in own.items()}
        _compare(data, signs, model, batch, plan, None, own)
        inner = inner or plan_given(model, guide, batch, shared, K)
        row = marginal(model, guide, batch, shared, K, inner)
        l.append(row)
        log_p.append(score(model, shared, batch) + row.sum())
        log_q.append(score(guide, shared, batch))
    return Pointwise(
        torch.stack(l),
        torch.stack(log_p),
        torch.stack(log_q),
        {n: torch.cat(t) for n, t in signs.items()},
    )


def _data(model: Program, batch: tuple[Any, ...]) -> dict[str, Tensor]:
    """Observed site -> x; empty where data cannot be drawn from the model."""
    try:
        return {name: batch[i] for name, i in observed_places(model, *batch).items()}
    except CannotSayError:
        return {}


def _compare(
    data: Mapping[str, Tensor],
    signs: dict[str, list[Tensor]],
    model: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    particles: int | None,
    drawn: Sites,
) -> None:
    """Draw one data set under each θ, and add the signs of x − x_rep (S, N, P) to `signs`."""
    if not data:
        return
    values = {n: s["value"] for n, s in drawn.items()}
    free = poutine.uncondition(model)
    sites = trace_program(
        free, batch, {}, particles=particles, nesting=plan.nesting, given=Given(values)
    )
    for name, x in data.items():
        x_rep = sites[name]["value"].reshape(particles or 1, len(x), -1)
        difference = _compared(x) - x_rep[..., columns(x)].double()
        signs[name].append(difference.nan_to_num(0.0).sign().to(torch.int8))


def _compared(x: Tensor) -> Tensor:
    """The columns of x (N, ...) that are compared: (N, P)."""
    return x.reshape(len(x), -1)[:, columns(x)].double()


def columns(x: Tensor) -> Tensor:
    """Which columns of x (N, ...) are compared: at most so many that 1,000 draws fit in memory."""
    width = x[0].numel()
    return torch.linspace(0, width - 1, min(width, max(1, CELLS // 1000 // len(x)))).long()


def global_draws(guide: Program, batch: tuple[Any, ...], num_draws: int) -> list[dict[str, Tensor]]:
    """θ_s ~ q: global site -> value, one dictionary a draw."""
    found = []
    for _ in range(num_draws):
        sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        found.append(
            {
                n: s["value"]
                for n, s in sites.items()
                if not site_is_subsample(s) and plate_dim(s, DATA_PLATE) is None
            }
        )
    return found


def marginal(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    theta: Mapping[str, Tensor],
    num_particles: int = LOCAL_PARTICLES,
    plan: PairStructure | None = None,
) -> Tensor:
    """log p(x_n | θ) (N,), local latents of the guide weighted out by K fresh draws.

    `plan` is what `plan_given` found out once for all θ.
    """
    programs = given(model, guide, theta)
    log_w = log_weights(*programs, *batch, num_particles=num_particles, plan=plan)
    return log_w.expand(-1, len(batch[0])).logsumexp(0) - math.log(len(log_w))


def given(model: Program, guide: Program, theta: Mapping[str, Tensor]) -> tuple[Program, Program]:
    """The programs with the global latents at θ and out of sight: only local ones are left."""
    model, guide = (
        poutine.block(poutine.condition(p, data=dict(theta)), hide=list(theta))
        for p in (model, guide)
    )
    return model, guide


def plan_given(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    theta: Mapping[str, Tensor],
    num_particles: int,
) -> PairStructure:
    """The structure that is left when the global latents are given."""
    return analyze_for_particles(*given(model, guide, theta), batch, {}, num_particles)


def score(program: Program, values: Mapping[str, Tensor], batch: tuple[Any, ...]) -> Tensor:
    """Log-density () of given values of a program's sites; sites that it lacks count nothing."""
    trace = poutine.trace(poutine.condition(program, data=dict(values))).get_trace(*batch)
    total = torch.zeros(())
    for name, value in values.items():
        if name in trace.nodes:  # a guide's auxiliary site is not in the model
            total = total + trace.nodes[name]["fn"].log_prob(value).sum()
    return total
