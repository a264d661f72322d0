"""Posteriors of differential equations, by Runge-Kutta steps."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_lvm.benchmarks.posterior_suite.base import (
    Draws,
    Json,
    Posterior,
    flat_positive,
    same_names,
    tensor,
)

STEPS = 4  # between two observations


def lotka_volterra(data: Json, model: str) -> Posterior:
    times = [0.0, *data["ts"]]

    def slope(z: Tensor, growth: Tensor, interaction: Tensor) -> Tensor:
        return z * (growth + interaction * z.flip(-1))

    def program(y: Tensor) -> None:  # the first row is at time 0
        alpha, beta, gamma, delta = (
            _truncated(f"theta{i}", loc, scale)
            for i, (loc, scale) in enumerate([(1, 0.5), (0.05, 0.05), (1, 0.5), (0.05, 0.05)], 1)
        )
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
        prior = dist.LogNormal(torch.tensor(10.0).log(), 1.0).expand([2]).to_event(1)
        z = pyro.sample("z_init", prior)
        growth, interaction = torch.stack([alpha, -gamma]), torch.stack([-beta, delta])
        states = [z]
        for start, end in pairwise(times):
            for _ in range(STEPS):
                z = runge_kutta(lambda s: slope(s, growth, interaction), z, (end - start) / STEPS)
            states.append(z)
        logs = torch.stack(states).clamp(min=1e-12).log()
        with pyro.plate("years", len(y)):
            pyro.sample("y", dist.LogNormal(logs, sigma).to_event(1), obs=y)

    def read(draws: Draws) -> dict[str, Tensor]:
        theta = {f"theta[{i}]": draws[f"theta{i}"] for i in (1, 2, 3, 4)}
        return theta | same_names({n: draws[n] for n in ("sigma", "z_init")})

    return Posterior(program, (tensor([data["y_init"], *data["y"]]),), read)


def _truncated(name: str, loc: float, scale: float) -> Tensor:
    """A positive value with the density of a normal, not renormalized."""
    value = flat_positive(name)
    pyro.factor(f"{name}_prior", dist.Normal(loc, scale).log_prob(value))
    return value


def michaelis_menten(data: Json, model: str) -> Posterior:
    times = [data["t0"], *data["times"]]
    dose, volume = float(data["D"]), float(data["V"])
    intervals = pairwise(times)
    grid = torch.stack([tensor(np.linspace(a, b, 2 * STEPS + 1)) for a, b in intervals])

    def program(concentration: Tensor) -> None:
        k_a, K_m, V_m, sigma = (
            pyro.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "V_m", "sigma")
        )

        # Concentration absorbed by half-steps of each interval, at once.
        inputs = (-k_a * grid).exp() * (dose / volume * k_a)
        limit = V_m / volume

        def slope(C: Tensor, absorbed: Tensor) -> Tensor:
            return absorbed - limit * C / (K_m + C)

        C, states = torch.zeros(()), []
        for t in range(len(times) - 1):
            h = (times[t + 1] - times[t]) / STEPS
            for i in range(STEPS):
                start, middle, end = inputs[t, 2 * i], inputs[t, 2 * i + 1], inputs[t, 2 * i + 2]
                k1 = slope(C, start)
                k2 = slope(C + h / 2 * k1, middle)
                k3 = slope(C + h / 2 * k2, middle)
                k4 = slope(C + h * k3, end)
                C = C + h / 6 * (k1 + 2 * (k2 + k3) + k4)
            states.append(C)
        logs = torch.stack(states).clamp(min=1e-12).log()
        with pyro.plate("times", len(concentration)):
            pyro.sample("C", dist.LogNormal(logs, sigma), obs=concentration)

    return Posterior(program, (tensor(data["C_hat"]),), same_names)


def runge_kutta(slope: Callable[[Tensor], Tensor], z: Tensor, h: float) -> Tensor:
    """One step of the classical Runge-Kutta method."""
    k1 = slope(z)
    k2 = slope(z + h / 2 * k1)
    k3 = slope(z + h / 2 * k2)
    k4 = slope(z + h * k3)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
