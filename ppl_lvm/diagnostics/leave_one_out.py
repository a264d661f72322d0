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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, cannot_say, graded
from ppl_lvm.diagnostics.predictive_checks import QUESTION, pit_findings
from ppl_lvm.particles.structure import Program
from ppl_lvm.posterior import psis
from ppl_lvm.posterior.conditional_density import Floats, _compared, pointwise
from ppl_lvm.posterior.simulation import observed_places


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
