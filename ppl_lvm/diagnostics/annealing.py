"""Annealed importance sampling from q to the posterior.

Between q(u | x) and p(x, u) lie the targets f_b = q^{1−b} p^b, 0 = b_0 < … < b_T = 1 (a sigmoid).
Forward: u ~ q; log w = Σ_t log f_{b_t}(u) − log f_{b_{t−1}}(u), a Hamiltonian transition under
f_{b_t} after each term but the last. Then E[w] = p(x), and

    log 1/C Σ_c w_c                     is a stochastic lower bound on log p(x).

Reverse, from an exact draw of the posterior, which data simulated from the model come with: the
same chain backwards has E[1/w'] = 1/p(x), and

    −log 1/C Σ_c exp(−log w'_c)         is a stochastic upper bound.

All rows and chains run at once. Leapfrog steps are measured in q's standard deviations. A first
run adapts the step size of every row at every temperature to an acceptance rate of .8; the runs
that are evaluated keep it fixed.

References:
    Neal (2001). Annealed importance sampling. https://arxiv.org/abs/physics/9803008
    Wu, Burda, Salakhutdinov, Grosse (2017). On the quantitative analysis of decoder-based
    generative models. https://arxiv.org/abs/1611.04273
    Grosse, Ghahramani, Adams (2015). Sandwiching the marginal likelihood using bidirectional
    Monte Carlo. https://arxiv.org/abs/1511.02543
"""

import math
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from ppl_lvm.diagnostics.unconstrained_density import UnconstrainedDensity

ACCEPTANCE = 0.8
ADAPTATION = 0.5  # step of the stochastic approximation on log ε
LEAPFROG = 5
SCALE_DRAWS = 64


@dataclass(frozen=True)
class Schedule:
    """Temperatures and step sizes, from the adapting run.

    Attributes:
        temperatures: b (T + 1,) from 0 to 1.
        steps: leapfrog step size (T, N) after each temperature.
        scale: (N, D) q's standard deviation, the unit of the steps.
        acceptance: mean acceptance rate of each row's transitions (N,) in the adapting run.
    """

    temperatures: Tensor
    steps: Tensor
    scale: Tensor
    acceptance: Tensor


def sigmoid_temperatures(count: int, steepness: float = 4.0) -> Tensor:
    """b_t = σ(δ(2t/T − 1)), stretched to reach 0 and 1 exactly: (T + 1,)."""
    b = torch.sigmoid(steepness * torch.linspace(-1, 1, count + 1, dtype=torch.float64))
    return (b - b[0]) / (b[-1] - b[0])


def adapt(density: UnconstrainedDensity, temperatures: Tensor, chains: int) -> Schedule:
    """Run once, adapting step sizes by stochastic approximation on log ε."""
    with pyro.validation_enabled(False):
        scale = density.draw(SCALE_DRAWS).std(0).clamp(min=1e-6)  # (N, D)
        u = density.draw(chains)
        log_step = torch.full((density.rows,), math.log(0.8 * density.size**-0.25), dtype=u.dtype)
        steps, rates = [], []
        for b in temperatures[1:]:
            if b < 1:
                u, rate = _transition(density, u, float(b), log_step.exp(), scale)
                log_step = log_step + ADAPTATION * (rate - ACCEPTANCE)
                rates.append(rate)
            steps.append(log_step.exp())
    mean = torch.stack(rates).mean(0) if rates else torch.ones(density.rows)
    # A moving average over neighboring temperatures smooths noisy step sizes.
    smooth = torch.nn.functional.avg_pool1d(
        torch.stack(steps).T[:, None], 5, 1, 2, count_include_pad=False
    )
    return Schedule(temperatures, smooth[:, 0].T.contiguous(), scale, mean)


def forward(density: UnconstrainedDensity, schedule: Schedule, chains: int) -> Tensor:
    """log w (C, N) of chains from q to the posterior."""
    b = schedule.temperatures
    with pyro.validation_enabled(False):
        u = density.draw(chains)
        log_w = torch.zeros(chains, density.rows, dtype=torch.float64)
        for t in range(1, len(b)):
            log_w += (b[t] - b[t - 1]) * _log_ratio(density, u)
            if t < len(b) - 1:
                u, _ = _transition(density, u, float(b[t]), schedule.steps[t - 1], schedule.scale)
    return log_w


def backward(
    density: UnconstrainedDensity, schedule: Schedule, posterior: Tensor, chains: int
) -> Tensor:
    """log w' (C, N) of chains from the exact draws `posterior` (1, N, D) back to q."""
    b = schedule.temperatures
    with pyro.validation_enabled(False):
        u = posterior.expand(chains, -1, -1).contiguous()
        log_w = torch.zeros(chains, density.rows, dtype=torch.float64)
        for t in range(len(b) - 1, 0, -1):
            if t < len(b) - 1:
                u, _ = _transition(density, u, float(b[t]), schedule.steps[t - 1], schedule.scale)
            log_w += (b[t] - b[t - 1]) * _log_ratio(density, u)
    return log_w


def _log_ratio(density: UnconstrainedDensity, u: Tensor) -> Tensor:
    with torch.no_grad():
        log_p, log_q = density.densities(u)
        return (log_p - log_q).double()


def _target(density: UnconstrainedDensity, u: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """log f_b(u) (C, N) and its gradient (C, N, D)."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        log_p, log_q = density.densities(u)
        value = (1 - b) * log_q + b * log_p
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), gradient


def _transition(
    density: UnconstrainedDensity, u: Tensor, b: float, step: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """One Hamiltonian transition of every chain and row under f_b: new u, acceptance rate (N,)."""
    # Trajectories of a fixed length may return to their start; a random length prevents it.
    jitter = 0.5 + torch.rand(len(step), 1)
    epsilon = jitter * step[:, None] * scale  # (N, D)
    momentum = torch.randn_like(u)
    value, gradient = _target(density, u, b)
    energy = value - momentum.square().sum(-1) / 2
    z, r = u, momentum + epsilon * gradient / 2
    for i in range(LEAPFROG):
        z = z + epsilon * r
        new, gradient = _target(density, z, b)
        r = r + epsilon * gradient / (1 if i < LEAPFROG - 1 else 2)
    log_accept = (new - r.square().sum(-1) / 2 - energy).nan_to_num(
        nan=-math.inf, posinf=math.inf, neginf=-math.inf
    )
    probability = log_accept.clamp(max=0).exp()
    accept = torch.rand_like(probability) < probability
    return torch.where(accept[..., None], z, u), probability.mean(0)
