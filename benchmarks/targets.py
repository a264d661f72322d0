"""What an estimator's mean gradient should be, on the programs where that can be computed."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.benchmarks import exact
from ppl_lvm.benchmarks.implementations import BOUNDS, Implementation
from ppl_lvm.benchmarks.programs import Known, Parameters, by_hand


def true_gradient(
    known: Known,
    leaves: Mapping[str, Tensor],
    x: Tensor,
    implementation: Implementation,
    num_particles: int,
) -> Tensor | None:
    """The gradient of the target, (P,), summed over rows; None where it is out of reach."""
    params, tensors = by_hand(dict(leaves)), list(leaves.values())
    target, objective = implementation.target, implementation.objective
    if target == "relaxed ELBO":  # is it a stand-in for the discrete one?
        target = "ELBO"
    if target in BOUNDS:
        value = known.expected(params, x, BOUNDS[target], num_particles)
        return exact.gradients(value, tensors)
    if known.states is None:
        return (
            None  # E wⁿ too: over a continuous latent rare draws make its mean, none its variance
        )
    if target == "exp CUBO":
        value = known.expected(params, x, _exp_cubo(objective), 1)
        return exact.gradients(value, tensors)
    if target == "TVO":
        return exact.gradients(_tvo(known, params, x, objective.betas), tensors)
    if target == "wake" or "KL(p" in target:
        iwae = exact.gradients(known.expected(params, x, BOUNDS["IWAE"], num_particles), tensors)
        guide = exact.gradients(_forward(known, params, x), tensors)
        return torch.where(guide != 0, guide, iwae)
    return None


def _exp_cubo(objective: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """-exp(n (w - c)) / n, of the constant that the objective has now."""
    n, c = objective.n, float(objective.average())

    def bound(log_p: Tensor, log_q: Tensor) -> Tensor:
        return -((n * (log_p - log_q - c)).exp() / n).mean(0)

    return bound


def _tables(known: Known, params: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z | x) of every state, (S, B) each."""
    assert known.states is not None
    states = known.states.to(x).expand(-1, len(x), -1)
    return known.by_hand.log_p(params, x, states), known.by_hand.log_q(params, x, states)


def _forward(known: Known, params: Parameters, x: Tensor) -> Tensor:
    """E_{p(z|x)} log q(z | x): -KL(p ‖ q) as far as the guide goes, (B,)."""
    log_p, log_q = _tables(known, params, x)
    return (log_p.detach().softmax(0) * log_q).sum(0)


def _tvo(known: Known, params: Parameters, x: Tensor, betas: list[float]) -> Tensor:
    """The left Riemann sum of E_{π_β} log w, (B,)."""
    log_p, log_q = _tables(known, params, x)
    total = torch.zeros_like(log_p[0])
    for beta, after in pairwise(betas):
        path = ((1 - beta) * log_q + beta * log_p).softmax(0)
        total = total + (after - beta) * (path * (log_p - log_q)).sum(0)
    return total
