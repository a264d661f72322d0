"""Parallel Hamiltonian chains, preconditioned by a normal approximation.

In the coordinates v = A⁻¹(u − μ) of q = N(μ, A Aᵀ) the target is near a standard normal, where a
trajectory of a quarter of a period, π/2, gives an independent draw. All chains move together: one
call of the target for each leapfrog step. Trajectories last a uniform time in (0.75, 1.25) · π/2
for all chains; the step size is adapted during the warm-up to the mean acceptance of the chains.

References:
    Neal (2011). MCMC using Hamiltonian dynamics. https://arxiv.org/abs/1206.1901
    Hoffman, Radul, Sountsov (2021). An adaptive-MCMC scheme for setting trajectory lengths in
    Hamiltonian Monte Carlo. https://proceedings.mlr.press/v130/hoffman21a.html
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_lvm.approximation.normal import Normal
from ppl_lvm.approximation.unconstrained import LogDensity

ACCEPTANCE = 0.8
MAX_LEAPFROG = 64


@dataclass
class Chains:
    """Chains and their state.

    Attributes:
        draws: (T, C, D) after the warm-up, unconstrained.
        acceptance: mean probability of acceptance of these draws.
        step_size: of a leapfrog step.
    """

    draws: Tensor
    acceptance: float
    step_size: float


class HamiltonianChains:
    """Chains at vectors `points` (C, D), preconditioned by `q`."""

    def __init__(
        self, target: LogDensity, q: Normal, points: Tensor, generator: torch.Generator
    ) -> None:
        self._target, self._q, self._generator = target, q, generator
        self.points = points
        self._values, self._gradients = target(points)
        self.step_size = min(1.0, 1.2 / q.dim**0.25)

    def run(self, draws: int, *, warmup: int = 0, every: int = 1) -> Chains:
        """Continue all chains: `warmup` steps that adapt the step size, then `draws` others.

        Of these `every`-th is kept.
        """
        log_step, average, drift = math.log(self.step_size), 0.0, 0.0
        center = math.log(self.step_size)
        for t in range(1, warmup + 1):
            accepted = self._move()
            # Dual averaging (Hoffman, Gelman 2014) with its usual constants.
            drift = (1 - 1 / (t + 10)) * drift + (ACCEPTANCE - accepted) / (t + 10)
            log_step = center - drift * math.sqrt(t) / 0.1
            weight = t**-0.75
            average = weight * log_step + (1 - weight) * average
            self.step_size = min(1.5, math.exp(log_step))
        if warmup:
            self.step_size = min(1.5, math.exp(average))
        rows, accepted = [], 0.0
        for t in range(draws):
            accepted += self._move() / draws
            if (t + 1) % every == 0:
                rows.append(self.points)
        return Chains(torch.stack(rows), accepted, self.step_size)

    def _move(self) -> float:
        """One trajectory of every chain; returns the mean probability of acceptance."""
        q, generator = self._q, self._generator
        time = math.pi / 2 * (0.75 + 0.5 * torch.rand((), generator=generator).item())
        steps = max(1, min(MAX_LEAPFROG, round(time / self.step_size)))
        momentum = torch.randn(self.points.shape, generator=generator, dtype=self.points.dtype)
        points, values, gradients = self.points, self._values, self._gradients
        energy = values - 0.5 * momentum.square().sum(1)
        for _ in range(steps):
            momentum = momentum + 0.5 * self.step_size * q.pulled_back(gradients)
            points = points + self.step_size * q.stretched(momentum)
            values, gradients = self._target(points)
            momentum = momentum + 0.5 * self.step_size * q.pulled_back(gradients)
        change = values - 0.5 * momentum.square().sum(1) - energy
        finite = change.isfinite() & gradients.isfinite().all(1)
        probability = torch.where(finite, change.clamp(max=0).exp(), 0.0)
        uniform = torch.rand(len(points), generator=generator, dtype=points.dtype)
        accept = uniform < probability
        self.points = torch.where(accept[:, None], points, self.points)
        self._values = torch.where(accept, values, self._values)
        self._gradients = torch.where(accept[:, None], gradients, self._gradients)
        return float(probability.mean())
