"""Three small programs with known bounds, evidence and gradients.

Each exists as Pyro programs and in plain torch over the same tensors.

    BeliefNet       bits                 the sum over all states
    LinearGaussian  reparameterized z    closed form, quadrature
    Decoders        a category and z     the sum over categories, quadrature over z

The pair's parameter "model/prior" is "model.prior" in `handwritten/`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.benchmarks.gradient_suite import exact
from ppl_lvm.benchmarks.handwritten import belief_net, decoders, linear_gaussian

Bound = Callable[[Tensor, Tensor], Tensor]
Parameters = dict[str, Tensor]
Tables = tuple[Tensor, Tensor, Tensor]


def _adopt(module: nn.Module, params: Parameters, owner: str) -> None:
    """Register the parameters "owner.…" without the prefix."""
    for name, value in params.items():
        if name.startswith(f"{owner}."):
            module.register_parameter(name.partition(".")[2], nn.Parameter(value.detach().clone()))


class BeliefNet(PyroModule):
    """z_n ~ Bernoulli(σ(a)), x_n ~ Bernoulli(σ(W z_n + b))."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        _adopt(self, params, "model")

    def forward(self, x: Tensor) -> None:
        prior, weight, bias = self.prior, self.weight, self.bias
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=prior).to_event(1))
            pyro.sample("x", Bernoulli(logits=z @ weight.T + bias).to_event(1), obs=x)


class BeliefNetGuide(PyroModule):
    """q(z_n | x_n) = Bernoulli(σ(V x_n + c))."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        _adopt(self, params, "guide")

    def forward(self, x: Tensor) -> None:
        weight, bias = self.weight, self.bias
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=x @ weight.T + bias).to_event(1))


class LinearGaussian(PyroModule):
    """z_n ~ Normal(0, I), x_n ~ Normal(W z_n + b, s² I)."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        _adopt(self, params, "model")

    def forward(self, x: Tensor) -> None:
        weight, bias, log_scale = self.weight, self.bias, self.log_scale
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(x.new_zeros(weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", Normal(z @ weight.T + bias, log_scale.exp()).to_event(1), obs=x)


class LinearGaussianGuide(PyroModule):
    """q(z_n | x_n) = Normal(V x_n + c, diag exp(l)²)."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        _adopt(self, params, "guide")

    def forward(self, x: Tensor) -> None:
        weight, bias, log_scale = self.weight, self.bias, self.log_scale
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x @ weight.T + bias, log_scale.exp()).to_event(1))


class Decoders(PyroModule):
    """c_n ~ Categorical(a), z_n ~ Normal(0, I), x_n ~ Normal(W_c z_n + b_c, s² I)."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        _adopt(self, params, "model")

    def forward(self, x: Tensor) -> None:
        prior, weight, bias, log_scale = self.prior, self.weight, self.bias, self.log_scale
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(logits=prior))
            z = pyro.sample("z", Normal(x.new_zeros(weight.shape[-1]), 1.0).to_event(1))
            mean = (weight[c] @ z.unsqueeze(-1)).squeeze(-1) + bias[c]
            pyro.sample("x", Normal(mean, log_scale.exp()).to_event(1), obs=x)


class DecodersGuide(PyroModule):
    """q(c_n | x_n) = Categorical(V x_n + e), q(z_n | x_n, c_n) = Normal(U x_n + d_c, exp(l)²)."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        _adopt(self, params, "guide")

    def forward(self, x: Tensor) -> None:
        weight, bias, log_scale = self.weight, self.bias, self.log_scale
        logits = x @ self.category_weight.T + self.category_bias
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(logits=logits))
            pyro.sample("z", Normal(x @ weight.T + bias[c], log_scale.exp()).to_event(1))


def normal_grid(num_particles: int, points: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite noise (K, G) and its weights (G,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    noise = torch.tensor(list(product(nodes, repeat=num_particles))).T
    weight = torch.tensor(list(product(weights / math.sqrt(2 * math.pi), repeat=num_particles)))
    return noise, weight.prod(-1)


def _points(num_particles: int) -> int:
    """Number of nodes: exact to 1e-6 or better, and within memory."""
    if num_particles > 3:
        raise ValueError(
            f"Quadrature over {num_particles} particles needs too much memory. Use at most 3."
        )
    return {1: 200, 2: 120, 3: 40}[num_particles]


def _belief_net_tables(params: Parameters, x: Tensor) -> Tables:
    z = belief_net.states(len(params["model.prior"]), x.dtype).expand(-1, len(x), -1)
    log_p, log_q = belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)
    return log_p, log_q, torch.zeros_like(log_p)


def _belief_net(params: Parameters, x: Tensor, bound: Bound, num_particles: int) -> Tensor:
    z = belief_net.states(len(params["model.prior"]), x.dtype).expand(-1, len(x), -1)
    log_p, log_q = belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)
    return exact.target(bound, log_p, log_q, num_particles)


def _linear_gaussian_tables(params: Parameters, x: Tensor) -> Tables:
    noise, weight = normal_grid(1, _points(1))
    z = linear_gaussian.place(params, x, noise[0, :, None, None].to(x)).detach()  # (G, B, 1)
    log_p, log_q = linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(params, x, z)
    return log_p, log_q, weight.to(x).log()[:, None] - log_q.detach()


def _linear_gaussian(params: Parameters, x: Tensor, bound: Bound, num_particles: int) -> Tensor:
    noise, weight = normal_grid(num_particles, _points(num_particles))
    z = linear_gaussian.place(params, x, noise[..., None, None].to(x))  # (K, G, B, 1)
    log_w = linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(params, x, z)
    return (weight[:, None].to(x) * bound(*log_w)).sum(0)


def _decoders_tables(params: Parameters, x: Tensor) -> Tables:
    noise, weight = normal_grid(1, _points(1))
    parts = []
    for c in range(len(params["model.prior"])):
        category = torch.full((len(weight), len(x)), c)
        z = decoders.place(params, x, category, noise[0, :, None, None].to(x)).detach()
        log_c, log_z = decoders.log_q_parts(params, x, (category, z))
        log_dz = weight.to(x).log()[:, None] - log_z.detach()
        parts.append((decoders.log_p(params, x, (category, z)), log_c + log_z, log_dz))
    log_p, log_q, log_dz = (torch.cat(part) for part in zip(*parts, strict=True))
    return log_p, log_q, log_dz


def _decoders(params: Parameters, x: Tensor, bound: Bound, num_particles: int) -> Tensor:
    noise, weight = normal_grid(num_particles, _points(num_particles))
    draws = exact.tuples(len(params["model.prior"]), num_particles)  # (K, S)
    total = x.new_zeros(len(x))
    for c in draws.T:
        categories = c[:, None, None].expand(-1, noise.shape[1], len(x))  # (K, G, B)
        z = decoders.place(params, x, categories, noise[..., None, None].to(x))
        draw = (categories, z)
        log_c, log_z = decoders.log_q_parts(params, x, draw)
        value = bound(decoders.log_p(params, x, draw), log_c + log_z)
        total = total + (weight[:, None].to(x) * log_c.sum(0).exp() * value).sum(0)
    return total


@dataclass(frozen=True)
class KnownProgram:
    """A pair with exact bounds.

    Attributes:
        name: of the hand-written module.
        model, guide: classes of Pyro programs, built from hand-written parameters.
        module: the module in `handwritten/`.
        expected: E[bound] per row, (B,), as a function of (params, x, bound, K); differentiable.
        tables: log p(x, z), log q(z | x) and log dz at fixed points z, (G, B) each: Σ_z dz f(z) is
            the integral of f, or the sum over all states (dz = 1).
        states: all values of the guide's site, (S, 1, ...); None if not finite.
        reparameterized: all draws of the guide are reparameterized.
    """

    name: str
    model: Callable[[Parameters], nn.Module]
    guide: Callable[[Parameters], nn.Module]
    module: ModuleType
    expected: Callable[[Parameters, Tensor, Bound, int], Tensor]
    tables: Callable[[Parameters, Tensor], Tables]
    states: Tensor | None
    reparameterized: bool

    def parameters(self, seed: int) -> Parameters:
        """Parameters of the hand-written program for this seed, in the default dtype."""
        torch.manual_seed(seed)
        params: Parameters = self.module.parameters()
        return params

    def data(self, seed: int, rows: int = 2) -> Tensor:
        """Rows in the support of the model, (B, P)."""
        generator = torch.Generator().manual_seed(seed)
        width = self.module.parameters()["model.bias"].shape[-1]
        x = torch.randn(rows, width, generator=generator, dtype=torch.get_default_dtype())
        return (x > 0).to(x) if self.name == "belief_net" else x


def handwritten_parameters(leaves: dict[str, Any]) -> Parameters:
    """A pair's parameters under the names of the hand-written program: the same tensors."""
    return {name.replace("/", "."): leaf for name, leaf in leaves.items()}


KNOWN = {
    "belief_net": KnownProgram(
        "belief_net",
        BeliefNet,
        BeliefNetGuide,
        belief_net,
        _belief_net,
        _belief_net_tables,
        belief_net.states(2),
        False,
    ),
    "linear_gaussian": KnownProgram(
        "linear_gaussian",
        LinearGaussian,
        LinearGaussianGuide,
        linear_gaussian,
        _linear_gaussian,
        _linear_gaussian_tables,
        None,
        True,
    ),
    "decoders": KnownProgram(
        "decoders", Decoders, DecodersGuide, decoders, _decoders, _decoders_tables, None, False
    ),
}
