"""Leave-one-out prediction by importance weights: elpd and PIT.

With draws θ_s ~ q of the global latents, l_sn = log p(x_n | θ_s), and smoothed, normalized weights

    w_sn ∝ p(x, θ_s) / q(θ_s) / p(x_n | θ_s),

    elpd_n = log Σ_s w_sn p(x_n | θ_s),    PIT:  u_np = Σ_s w_sn 1[x_rep,snp < x_np],

x_rep,s ~ p(x | θ_s), ties broken at random. u is uniform over n if the model is right. Unlike the
PIT of training rows it does not use x_n twice.

l is marginal over local latents: enumerated ones are summed out exactly, others are integrated by
importance weights of K fresh draws per θ_s. The conditional log p(x_n | z_n) with
z_n ~ q(z_n | x_n) depends on x_n through z_n, and leave-one-out prediction from it is wrong.

References:
    Magnusson, Andersen, Jonasson, Vehtari (2019). Bayesian leave-one-out cross-validation for
    large data. https://arxiv.org/abs/1904.10679
    Gelfand, Dey, Chang (1992). Model determination using predictive distributions with
    implementation via sampling-based methods. (LOO-PIT)
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Floats, Program
from ppl_lvm.diagnostics.base import Diagnostic
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, Threshold
from ppl_lvm.diagnostics.predictive_checks import QUESTION, pit_findings
from ppl_lvm.posterior import psis
from ppl_lvm.posterior.conditional_density import compared_columns, pointwise_densities
from ppl_lvm.posterior.simulation import observed_arguments

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
    """

    loo: psis.Loo
    pit: dict[str, Floats]

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
        why = "The leave-one-out weights are unreliable for too many rows."
        return [
            row,
            *(Finding(question=QUESTION, name=f"LOO-PIT of {name}", why=why) for name in self.pit),
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
        log_w, _ = psis.psis(log_p - log_q - l.T)  # (N, S)
        w = torch.from_numpy(np.exp(log_w)).float()
        signs = densities.residual_signs
        pit, arguments = {}, observed_arguments(model, *batch) if signs else {}
        for name, sign in signs.items():  # (S, N, P)
            below = torch.einsum("ns,snp->np", w, (sign > 0).float())
            tied = torch.einsum("ns,snp->np", w, (sign == 0).float())
            u = (below + tied * torch.rand(tied.shape)).clamp(0, 1)
            x = compared_columns(batch[arguments[name]])
            pit[name] = torch.where(x.isnan(), math.nan, u.double()).numpy()
    return LeaveOneOutCheck(psis.loo(l, log_p, log_q), pit)


LEAVE_ONE_OUT = Diagnostic(
    slug="loo",
    question=QUESTION,
    title="leave-one-out",
    run=lambda c: loo(c.model, c.guide, *c.train, seed=c.seed),
)
