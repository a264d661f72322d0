"""Exact target gradients of estimators on the known programs."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ppl_lvm.benchmarks.gradient_suite import exact
from ppl_lvm.benchmarks.gradient_suite.implementations import BOUNDS, Implementation
from ppl_lvm.benchmarks.gradient_suite.programs import KnownProgram, handwritten_parameters

RARE = 0.01


def true_gradient(
    known: KnownProgram,
    leaves: Mapping[str, Tensor],
    x: Tensor,
    implementation: Implementation,
    num_particles: int,
) -> Tensor | None:
    """Gradient of the target, (P,), summed over rows; None if it cannot be computed."""
    params, tensors = handwritten_parameters(dict(leaves)), list(leaves.values())
    target, objective = implementation.target, implementation.objective
    if target == "relaxed ELBO":  # compared with the discrete ELBO
        target = "ELBO"
    if target in BOUNDS:
        value = known.expected(params, x, BOUNDS[target], num_particles)
        return exact.gradients(value, tensors)
    log_p, log_q, log_dz = known.tables(params, x)
    if target == "exp CUBO":
        n, c = objective.n, float(objective.average())
        power = (n * (log_p - log_q - c)).exp() / n
        if _share((log_q + log_dz).exp().detach(), power.detach()) < RARE:
            return None
        return exact.gradients(-((log_q + log_dz).exp() * power).sum(0), tensors)
    if target == "TVO":
        return exact.gradients(_tvo(log_p, log_q, log_dz, objective.betas), tensors)
    if target == "wake" or "KL(p" in target:
        iwae = exact.gradients(known.expected(params, x, BOUNDS["IWAE"], num_particles), tensors)
        posterior = (log_p + log_dz).detach().softmax(0)
        guide = exact.gradients(
            (posterior * log_q).sum(0), tensors
        )  # -KL(p ‖ q) without the entropy of p
        return torch.where(guide != 0, guide, iwae)
    return None


def _share(q: Tensor, value: Tensor) -> float:
    """min over rows of E[value]² / E[value²]: the share of draws that determine the mean.

    If it is tiny, samples miss these draws, and their standard error is too small.
    """
    return float(((q * value).sum(0) ** 2 / (q * value**2).sum(0)).min())


def _tvo(log_p: Tensor, log_q: Tensor, log_dz: Tensor, betas: list[float]) -> Tensor:
    """The left Riemann sum of E_{π_β} log w, (B,)."""
    total = torch.zeros_like(log_p[0])
    for beta, next_beta in pairwise(betas):
        path = ((1 - beta) * log_q + beta * log_p + log_dz).softmax(0)
        total = total + (next_beta - beta) * (path * (log_p - log_q)).sum(0)
    return total
