"""Low-variance gradients of E_q f(b) for Bernoulli bits.

Every function takes the logits φ (..., D) of independent bits, uniform noise of the same shape and
f: bits (..., D) → (...); it returns S to ascend, (...). f has fixed guide parameters (their
gradient of -log q has mean zero); the model's parameters get their gradient through f.

    disarm  ½ (f(b) - f(b̃)) (-1)^b̃ᵢ 1[bᵢ ≠ b̃ᵢ] σ(|φᵢ|), b = 1[1-u < σ(φ)], b̃ = 1[u < σ(φ)]
    relax   (f(b) - η c(z̃)) ∇log q(b) + η ∇c(z) - η ∇c(z̃), z = φ + logit u, b = 1[z > 0],
            z̃ the same given b, from independent noise v; any c
    rebar   relax with c(z) = f(σ(z / τ)); f must be defined on [0, 1]

References:
    Dong, Mnih, Tucker (2020). DisARM. https://arxiv.org/abs/2006.10680
    Tucker et al. (2017). REBAR. https://arxiv.org/abs/1703.07370
    Grathwohl et al. (2018). Backpropagation through the void. https://arxiv.org/abs/1711.00123
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ppl_lvm.benchmarks.handwritten import belief_net
from ppl_lvm.benchmarks.handwritten.belief_net import log_bernoulli
from ppl_lvm.benchmarks.handwritten.twins import Params, Twin

Function = Callable[[Tensor], Tensor]


def disarm(logits: Tensor, u: Tensor, f: Function) -> Tensor:
    s = logits.sigmoid().detach()
    b, b_tilde = (1 - u < s).to(s), (u < s).to(s)
    f_b, f_tilde = f(b), f(b_tilde)
    differ = (b != b_tilde).to(s) * (1 - 2 * b_tilde) * logits.detach().abs().sigmoid()
    gradient = 0.5 * (f_b - f_tilde).detach().unsqueeze(-1) * differ
    return (gradient * logits).sum(-1) + 0.5 * (f_b + f_tilde)


def logit(u: Tensor) -> Tensor:
    return u.log() - (-u).log1p()


def couple(logits: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """b, its logistic variable z, and z̃ ~ p(z | b), differentiable in the logits."""
    z = logits + logit(u)
    b = (z > 0).to(logits).detach()
    s = logits.sigmoid()
    u_tilde = b * (v * s + 1 - s) + (1 - b) * v * (1 - s)
    return b, z, logits + logit(u_tilde)


def relax(
    logits: Tensor, u: Tensor, v: Tensor, f: Function, c: Function, eta: float | Tensor = 1.0
) -> Tensor:
    b, z, z_tilde = couple(logits, u, v)
    f_b, c_z, c_tilde = f(b), eta * c(z), eta * c(z_tilde)
    return (f_b - c_tilde).detach() * log_bernoulli(logits, b) + f_b + c_z - c_tilde


def rebar(
    logits: Tensor,
    u: Tensor,
    v: Tensor,
    f: Function,
    fixed_f: Function,
    temperature: float = 0.5,
    eta: float | Tensor = 1.0,
) -> Tensor:
    """`fixed_f` is f with all parameters detached; their gradient through c has mean zero."""
    return relax(logits, u, v, f, lambda z: fixed_f((z / temperature).sigmoid()), eta)


class Signal:
    """f(z) = log p - log q at fixed guide parameters, with a record of its values."""

    def __init__(self, params: Params, x: Tensor) -> None:
        self.params, self.x = params, x
        self.fixed = {name: value.detach() for name, value in params.items()}
        self.values: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        log_p = belief_net.log_p(self.params, self.x, z)
        self.values.append(log_p - belief_net.log_q(self.fixed, self.x, z))
        return self.values[-1]

    def at_fixed_parameters(self, z: Tensor) -> Tensor:
        """f with all parameters detached."""
        log_p = belief_net.log_p(self.fixed, self.x, z)
        return log_p - belief_net.log_q(self.fixed, self.x, z)

    def bound(self) -> Tensor:
        """Mean of all evaluations, (B,)."""
        return torch.stack(self.values).mean((0, 1))


class Control:
    """The network of RELAX's control variate; the caller optimizes it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network


def uniform_noise(params: Params, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Logits and two uniforms per bit of K draws."""
    logits = belief_net.guide_logits(params, x).expand(draws, -1, -1)
    tiny = torch.finfo(x.dtype).tiny
    return logits, torch.rand(2, *logits.shape, dtype=x.dtype).clamp_min(tiny)


def twins(program: str, params: Params, num_particles: int) -> Iterator[Twin]:
    """DisARM, REBAR and RELAX on the belief net."""
    if program != "belief_net":
        return
    K = num_particles
    prior = params["model.prior"]
    network = nn.Sequential(nn.Linear(len(prior), 16), nn.Tanh(), nn.Linear(16, 1)).to(prior.dtype)
    learned = Control(network)

    def antithetic(x: Tensor) -> tuple[Tensor, Tensor]:
        f = Signal(params, x)
        logits, u = uniform_noise(params, x, max(1, K // 2))  # a pair of draws is two particles
        S = disarm(logits, u[0], f).mean(0)
        return f.bound(), S

    def relaxed_bound(x: Tensor) -> tuple[Tensor, Tensor]:
        f = Signal(params, x)
        logits, u = uniform_noise(params, x, K)
        S = rebar(logits, u[0], u[1], f, f.at_fixed_parameters).mean(0)
        return f.bound(), S

    def learned_control(x: Tensor) -> tuple[Tensor, Tensor]:
        f = Signal(params, x)
        logits, u = uniform_noise(params, x, K)

        def c(z: Tensor) -> Tensor:
            return f.at_fixed_parameters((z / 0.5).sigmoid()) + learned.network(z).squeeze(-1)

        S = relax(logits, u[0], u[1], f, c).mean(0)
        return f.bound(), S

    yield Twin("DisARM", antithetic)
    yield Twin("REBAR", relaxed_bound)
    yield Twin("RELAX", learned_control, learned)
