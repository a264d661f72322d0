"""Importance-weighted updates: wake-sleep, TVO, the χ upper bound.

Every function takes log p(x, z_k) and log q(z_k | x), (K, B), of detached draws (cubo: any draws),
and returns S to ascend, (B,); w_k = p / q.

    wake_model  Σ_k w̄_k ∇log p_k        unbiased for ∇IWAE_K
    wake_guide  Σ_k w̄_k ∇log q_k        consistent for -∇KL(p(z|x) ‖ q)
    tvo         left Riemann sum of ∫₀¹ E_{π_β} log w dβ, π_β ∝ q^(1-β) p^β; consistent
    cubo        1/n log 1/K Σ w_kⁿ       consistent for 1/n log E wⁿ ≥ log p(x); minimized
    exp_cubo    1/K Σ_k w_kⁿ             unbiased for E wⁿ; minimized, and scaled by exp(-n c)

References:
    Bornschein, Bengio (2015). Reweighted wake-sleep. https://arxiv.org/abs/1406.2751
    Masrani, Le, Wood (2019). The thermodynamic variational objective.
    https://arxiv.org/abs/1907.00031
    Dieng et al. (2017). Variational inference via χ upper bound minimization.
    https://arxiv.org/abs/1611.00328
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ppl_lvm.benchmarks.handwritten import pathwise
from ppl_lvm.benchmarks.handwritten.twins import (
    Params,
    RunningMean,
    Twin,
    detached_tables,
    on_tables,
)


def wake_model(log_p: Tensor, log_q: Tensor) -> Tensor:
    return ((log_p - log_q).detach().softmax(0) * log_p).sum(0)


def wake_guide(log_p: Tensor, log_q: Tensor) -> Tensor:
    return ((log_p - log_q).detach().softmax(0) * log_q).sum(0)


def wake(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Both updates: log p depends on the model's parameters only, log q on the guide's."""
    return wake_model(log_p, log_q) + wake_guide(log_p, log_q)


def log_spaced(num_partitions: int, first: float = 0.05) -> list[float]:
    """0 = β_0 < β_1 = first < … < β_T = 1, evenly in the logarithm."""
    T = num_partitions
    return [0.0] + [first ** (1 - t / (T - 1)) for t in range(T - 1)] + [1.0] if T > 1 else [0, 1]


def tvo(log_p: Tensor, log_q: Tensor, betas: list[float]) -> Tensor:
    """The covariance is divided by 1 - Σ w², so that one partition is leave-one-out at any K."""
    log_w = log_p - log_q
    total = torch.zeros_like(log_w[0])
    for beta, next_beta in pairwise(betas):
        w = (beta * log_w).detach().softmax(0)  # (K, B)
        mean = (w * log_w).sum(0)
        score = beta * log_p + (1 - beta) * log_q
        covariance = (w * (log_w - mean).detach() * score).sum(0) / (1 - (w**2).sum(0))
        total = total + (next_beta - beta) * (mean + covariance)
    return total


def tvo_bound(log_p: Tensor, log_q: Tensor, betas: list[float]) -> Tensor:
    """The value of the TVO."""
    log_w = log_p - log_q
    steps = pairwise(betas)
    means = [(b - a) * ((a * log_w).softmax(0) * log_w).sum(0) for a, b in steps]
    return torch.stack(means).sum(0)


def cubo(log_p: Tensor, log_q: Tensor, n: float = 2.0) -> Tensor:
    """Minus the bound, which is minimized; the draws may have a gradient."""
    return -((n * (log_p - log_q)).logsumexp(0) - math.log(len(log_p))) / n


def exp_cubo(log_p: Tensor, log_q: Tensor, n: float = 2.0, constant: float = 0.0) -> Tensor:
    """Detached draws; `constant` must not depend on them."""
    power = (n * ((log_p - log_q).detach() - constant)).exp()
    return -(power * ((1 - n) * log_q + n * log_p)).mean(0)


@dataclass
class Path:
    """Temperatures of the thermodynamic path."""

    betas: list[float] = field(default_factory=lambda: log_spaced(5))


def twins(program: str, params: Params, num_particles: int) -> Iterator[Twin]:
    """Wake-sleep, TVO and CUBO from densities at detached draws."""
    tables = detached_tables(program, params, num_particles)
    if tables is None:
        return
    yield Twin("ReweightedWakeSleep", on_tables(tables, wake, pathwise.iwae))
    path = Path()
    surrogate, bound = partial(tvo, betas=path.betas), partial(tvo_bound, betas=path.betas)
    yield Twin("ThermodynamicELBO", on_tables(tables, surrogate, bound), path)
    constant = RunningMean()

    def descend_cubo(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = tables(x)
        bound = -cubo(log_p, log_q, constant.n)
        S = exp_cubo(log_p, log_q, constant.n, constant.value) / constant.n
        constant.update(bound)
        return -bound, S  # an upper bound is descended

    if program == "belief_net":
        yield Twin("CUBO", descend_cubo, constant)
