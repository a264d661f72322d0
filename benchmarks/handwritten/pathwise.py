"""Bounds and their pathwise gradients, through reparameterized draws.

Every function takes log p(x, z_k) and log q(z_k | x), (K, B), and returns S to ascend, (B,);
w_k = p / q, w̄ = softmax(log w), K particles in dimension 0. log q_fixed has detached parameters, so
that gradients pass through z only.

    elbo        1/K Σ_k log w_k
    iwae        log 1/K Σ_k w_k
    renyi       1/(1-α) log 1/K Σ_k w_k^(1-α)
    vr_max      max_k log w_k
    stl         the ELBO with log q_fixed: Roeder, Wu, Duvenaud 2017, https://arxiv.org/abs/1703.09194
    dreg        IWAE's gradient, Σ_k w̄_k² ∂log w_k/∂z_k for the guide
    dreg_renyi  Rényi's, Σ_k (α w̄_k + (1-α) w̄_k²) ∂log w_k/∂z_k

References:
    Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519
    Li, Turner (2016). Rényi divergence variational inference. https://arxiv.org/abs/1602.02311
    Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators.
    https://arxiv.org/abs/1810.04152
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from ppl_lvm.benchmarks.handwritten import linear_gaussian
from ppl_lvm.benchmarks.handwritten.twins import ALPHA, Bound, Params, Surrogate, Twin


def elbo(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p - log_q).mean(0)


def iwae(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p - log_q).logsumexp(0) - math.log(len(log_p))


def renyi(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    power = 1 - alpha
    return ((power * (log_p - log_q)).logsumexp(0) - math.log(len(log_p))) / power


def vr_max(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p - log_q).max(0).values


def stl(log_p: Tensor, log_q_at_fixed_parameters: Tensor) -> Tensor:
    return (log_p - log_q_at_fixed_parameters).mean(0)


def dreg(z: Tensor, log_p: Tensor, log_q_at_fixed_parameters: Tensor) -> Tensor:
    """Weights w̄ for the model; the hook on z (K, B, D) makes w̄² for the guide. One layer only."""
    return dreg_renyi(z, log_p, log_q_at_fixed_parameters, alpha=0.0)


def dreg_renyi(z: Tensor, log_p: Tensor, log_q_at_fixed_parameters: Tensor, alpha: float) -> Tensor:
    log_w = log_p - log_q_at_fixed_parameters
    w = ((1 - alpha) * log_w).detach().softmax(0)  # (K, B)
    z.register_hook(lambda gradient: (alpha + (1 - alpha) * w).unsqueeze(-1) * gradient)
    return (w * log_w).sum(0)


def twins(program: str, params: Params, num_particles: int) -> Iterator[Twin]:
    """Pathwise estimators on the linear-Gaussian model."""
    if program != "linear_gaussian":
        return
    K = num_particles
    fixed = {k: v.detach() if k.startswith("guide") else v for k, v in params.items()}

    def differentiated(bound: Bound) -> Surrogate:
        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            z = linear_gaussian.draw(params, x, K)
            value = bound(linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(params, x, z))
            return value, value

        return evaluate

    def fixed_guide(
        surrogate: Callable[[Tensor, Tensor, Tensor], Tensor], bound: Bound
    ) -> Surrogate:
        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            z = linear_gaussian.draw(params, x, K)
            log_p, log_q = linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(fixed, x, z)
            return bound(log_p, log_q), surrogate(z, log_p, log_q)

        return evaluate

    renyi_bound = partial(renyi, alpha=ALPHA)
    yield Twin("ELBO", differentiated(elbo))
    yield Twin("IWAE", differentiated(iwae))
    yield Twin("Renyi", differentiated(renyi_bound))
    yield Twin("VRMax", differentiated(vr_max))
    yield Twin("StickingTheLanding", fixed_guide(lambda z, p, q: stl(p, q), elbo))
    yield Twin("DReG", fixed_guide(dreg, iwae))
    yield Twin("DReGRenyi", fixed_guide(partial(dreg_renyi, alpha=ALPHA), renyi_bound))
