"""Leave-one-out prediction by importance weights: elpd and PIT.

With draws θ_s ~ q of the global latents, l_sn = log p(x_n | θ_s), and smoothed, normalized weights

    w_sn ∝ p(x, θ_s) / q(θ_s) / p(x_n | θ_s),

    elpd_n = log Σ_s w_sn p(x_n | θ_s),    PIT:  u_np = Σ_s w_sn 1[x_rep,snp < x_np],

x_rep,s ~ p(x | θ_s), ties broken at random. u is uniform over n if the model is right. Unlike the
PIT of training rows it does not use x_n twice.

l is marginal over local latents: enumerated ones are summed out exactly, others are integrated by
importance weights of K fresh draws per θ_s. Where rows share enumerated sites (a change point),
l_sn = log p(x_n | x_-n, θ_s), with these sites summed out given the other rows. The conditional
log p(x_n | z_n) with z_n ~ q(z_n | x_n) depends on x_n through z_n, and leave-one-out prediction
from it is wrong.

References:
    Magnusson, Andersen, Jonasson, Vehtari (2019). Bayesian leave-one-out cross-validation for
    large data. https://arxiv.org/abs/1904.10679
    Gelfand, Dey, Chang (1992). Model determination using predictive distributions with
    implementation via sampling-based methods. (LOO-PIT)
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Floats, Program
from ppl_lvm.diagnostics.base import Context, Diagnostic
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.diagnostics.pareto_k import JOINT_K_HAT
from ppl_lvm.diagnostics.predictive_checks import QUESTION, pit_findings
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.particles.tracing import ReplayValues, trace_program
from ppl_lvm.posterior import psis
from ppl_lvm.posterior.conditional_density import CHUNK_CELLS, pointwise_densities
from ppl_lvm.posterior.global_states import GlobalDraws
from ppl_lvm.posterior.simulation import observed_arguments

SIGN_CELLS = 2**27  # signs of residuals that are stored, a byte each
TYPICAL_DRAWS = 1000
SHARE_OF_HIGH_K_HAT = Threshold(
    good=0.05, bad=0.2, source=f"Magnusson et al. 2019, arXiv:1904.10679; shares: {PROJECT_DEFAULT}"
)


@dataclass(frozen=True)
class LeaveOneOutCheck:
    """Leave-one-out accuracy and PIT.

    Attributes:
        loo: result of `ppl_lvm.posterior.psis.loo`, corrected for draws from q.
        pit: site -> u (N, P), P(x_rep,np < x_np | the other rows); empty where data cannot be
            simulated.
        joint_k: k̂ of the joint weight. Above 0.7 the rows' weights fail by q, which says nothing of
            the data.
    """

    loo: psis.Loo
    pit: dict[str, Floats]
    joint_k: float = -math.inf

    def findings(self) -> list[Finding]:
        k, N = self.loo.k, len(self.loo.k)
        share = float((k > self.loo.good_k).mean())
        threshold = SHARE_OF_HIGH_K_HAT
        row = threshold.finding(
            QUESTION,
            "leave-one-out: share of rows with unreliable k̂",
            share,
            math.sqrt(share * (1 - share) / N),
            why=f"k̂ ≤ {self.loo.good_k:.2f} is reliable. elpd {self.loo.elpd:.2f} ± "
            f"{self.loo.se:.2f} nats in total, effective parameters {self.loo.p:.1f}.",
            remedy="q itself is far from the posterior (see the joint k̂): a richer guide."
            if share > 0.5
            else "Refit without those rows, or K-fold cross-validation.",
        )
        if share <= threshold.bad:
            return [row, *pit_findings(self.pit, "LOO-PIT")]
        if self.joint_k > JOINT_K_HAT.bad:
            why = f"{row.why} The guide's joint k̂ of {self.joint_k:.2f} explains it, not the data."
            row = replace(row, verdict="unknown", why=why, remedy="A richer guide.")
        why = "The leave-one-out weights are unreliable for too many rows."
        return [
            row,
            *(
                Finding(question=QUESTION, name=f"LOO-PIT of {n}", why=why, remedy=row.remedy)
                for n in self.pit
            ),
        ]


def loo(
    model: Program, guide: Program, *batch: Any, num_draws: int = 1000, seed: int = 0
) -> LeaveOneOutCheck:
    """Expected log predictive density and PIT of each row given the others.

    Raises:
        CannotSayError: no global latents: the parameters are points that were fitted to every row.
    """
    with isolated_rng(seed), torch.no_grad():
        densities = pointwise_densities(model, guide, batch, num_draws)
        l, log_p, log_q = (
            t.double().numpy() for t in (densities.log_lik, densities.log_p, densities.log_q)
        )
        # Replicated data have drawn states of enumerated sites, which the weights must remove.
        l_of_states = densities.log_lik_of_states.double().numpy()
        log_w, _ = psis.psis(log_p - log_q - l_of_states.T)  # (N, S)
        w = torch.from_numpy(np.exp(log_w)).float()
        signs = _residual_signs(model, guide, batch, densities.draws)
        pit, arguments = {}, observed_arguments(model, *batch) if signs else {}
        for name, sign in signs.items():  # (S, N, P)
            below = torch.einsum("ns,snp->np", w, (sign > 0).float())
            tied = torch.einsum("ns,snp->np", w, (sign == 0).float())
            u = (below + tied * torch.rand(tied.shape)).clamp(0, 1)
            x = _compared_columns(batch[arguments[name]])
            pit[name] = torch.where(x.isnan(), math.nan, u.double()).numpy()
    return LeaveOneOutCheck(psis.loo(l, log_p, log_q), pit)


def _residual_signs(
    model: Program, guide: Program, batch: Batch, draws: GlobalDraws
) -> dict[str, Tensor]:
    """Observed site -> signs of x − x_rep (S, N, P), one replicated data set per draw.

    Of evenly spaced columns where there are too many; empty where data cannot be simulated.
    """
    try:
        arguments = observed_arguments(model, *batch)
    except CannotSayError:  # data cannot be simulated from the model
        return {}
    structure = analyze_for_particles(model, guide, batch, {}, 2)
    free, nesting = poutine.uncondition(model), structure.nesting
    signs: dict[str, list[Tensor]] = {name: [] for name in arguments}
    chunk = max(2, CHUNK_CELLS // len(batch[0])) if structure.vectorized else 1
    for start in range(0, draws.count, chunk):
        some = draws.select(slice(start, start + chunk))
        # A single draw has no particle dimension.
        particles = some.count if some.count > 1 else None
        values = some.under_particles(nesting) if particles else next(iter(some))
        replay = ReplayValues(values)
        sites = trace_program(free, batch, {}, particles=particles, nesting=nesting, replay=replay)
        for name, i in arguments.items():
            x = batch[i]
            x_rep = sites[name]["value"].reshape(some.count, len(x), -1)
            difference = _compared_columns(x) - x_rep[..., _column_index(x)].double()
            signs[name].append(difference.nan_to_num(0.0).sign().to(torch.int8))
    return {name: torch.cat(parts) for name, parts in signs.items()}


def _compared_columns(x: Tensor) -> Tensor:
    """The columns of x (N, ...) whose residual signs are stored: (N, P)."""
    return x.reshape(len(x), -1)[:, _column_index(x)].double()


def _column_index(x: Tensor) -> Tensor:
    """Evenly spaced columns of x (N, ...), as many as 1,000 draws leave memory for."""
    width = x[0].numel()
    columns = min(width, max(1, SIGN_CELLS // TYPICAL_DRAWS // len(x)))
    return torch.linspace(0, width - 1, columns).long()


def _run_loo(context: Context) -> LeaveOneOutCheck:
    result = loo(context.model, context.guide, *context.train, seed=context.seed)
    khat = context.results.get("khat")
    return replace(result, joint_k=float(khat.k[0])) if khat is not None and khat.joint else result


LEAVE_ONE_OUT = Diagnostic(
    slug="loo",
    question=QUESTION,
    title="leave-one-out",
    run=_run_loo,
    spoils=("samples",),
)
