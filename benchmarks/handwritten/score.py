"""Score-function gradients, from log q at detached draws.

Every function takes log p(x, z_k) and log q(z_k | x), (K, B), and returns S to ascend, (B,);
w_k = p / q, K particles in dimension 0.

    reinforce   1/K Σ_k (log w_k - b) ∇log q_k + ∇log p_k          b = 0 or another baseline
    rloo        the same with b_k the mean of the others' log w
    vimco       Σ_k (L - L_{-k}) ∇log q_k + ∇L, L = log 1/K Σ w, slot k of L_{-k} filled by
                the geometric mean of the others
    renyi       vimco's form, L = 1/(1-α) log 1/K Σ w^(1-α)
    vr_max      vimco's form, L = max_k log w_k
    mixed       vimco's form for guides in which only some sites need the score
    nvil        reinforce with a baseline fitted by least squares

References:
    Mnih, Gregor (2014). Neural variational inference and learning. https://arxiv.org/abs/1402.0030
    Mnih, Rezende (2016). Variational inference for Monte Carlo objectives.
    https://arxiv.org/abs/1602.06725
    Kool, van Hoof, Welling (2019). Buy 4 REINFORCE samples, get a baseline for free!
    https://openreview.net/forum?id=r1lgTGL5DE
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ppl_lvm.benchmarks.handwritten import decoders, pathwise
from ppl_lvm.benchmarks.handwritten.twins import (
    ALPHA,
    Bound,
    Params,
    RunningMean,
    Surrogate,
    Twin,
    belief_net_tables,
    on_tables,
)


def reinforce(log_p: Tensor, log_q: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    signal = (log_p - log_q).detach() - baseline
    return (signal * log_q + log_p).mean(0)


def rloo(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_w = (log_p - log_q).detach()
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    return ((log_w - others) * log_q + log_p).mean(0)


def leave_one_out(log_w: Tensor) -> Tensor:
    """(K, K, B): row k is log_w with entry k replaced by the mean of the others."""
    K = len(log_w)
    others = (log_w.sum(0) - log_w) / (K - 1)
    diagonal = torch.eye(K, dtype=torch.bool).view(K, K, *[1] * (log_w.dim() - 1))
    return torch.where(diagonal, others.unsqueeze(1), log_w.unsqueeze(0))


def log_mean_exp(log_w: Tensor, power: float, dim: int) -> Tensor:
    return ((power * log_w).logsumexp(dim) - math.log(log_w.shape[dim])) / power


def vimco(log_p: Tensor, log_q: Tensor) -> Tensor:
    return renyi(log_p, log_q, alpha=0.0)


def renyi(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    return mixed(log_p, log_q, log_q, alpha)


def vr_max(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_w = log_p - log_q
    without = leave_one_out(log_w.detach()).max(1).values  # (K, B)
    bound = log_w.max(0).values
    return bound + ((bound.detach() - without) * log_q).sum(0)


def mixed_rloo(log_p: Tensor, log_q: Tensor, log_q_score: Tensor) -> Tensor:
    """`rloo` for guides in which some sites are reparameterized."""
    log_w = (log_p - log_q).detach()
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    return (log_p - (log_q - log_q_score) + (log_w - others) * log_q_score).mean(0)


def mixed(log_p: Tensor, log_q: Tensor, log_q_score: Tensor, alpha: float = 0.0) -> Tensor:
    """`log_q_score` is the part of log q of sites without reparameterized draws."""
    log_w = log_p - log_q
    bound = log_mean_exp(log_w, 1 - alpha, dim=0)
    without = log_mean_exp(leave_one_out(log_w.detach()), 1 - alpha, dim=1)  # (K, B)
    return bound + ((bound.detach() - without) * log_q_score).sum(0)


def nvil(log_p: Tensor, log_q: Tensor, baseline: Tensor) -> Tensor:
    """`baseline` (B,) is the output of a network of x, fitted by least squares."""
    log_w = (log_p - log_q).detach()
    return reinforce(log_p, log_q, baseline.detach()) - (log_w - baseline).square().mean(0)


def twins(program: str, params: Params, num_particles: int) -> Iterator[Twin]:
    """Score-function estimators: on bits, and for the category of the decoders."""
    K = num_particles
    pathwise_renyi = partial(pathwise.renyi, alpha=ALPHA)
    if program == "belief_net":

        def on_bits(surrogate: Bound, bound: Bound) -> Surrogate:
            return on_tables(partial(belief_net_tables, params, num_particles=K), surrogate, bound)

        yield Twin("ScoreFunction", on_bits(reinforce, pathwise.elbo))
        yield Twin("LeaveOneOut", on_bits(rloo, pathwise.elbo))
        yield Twin("VIMCO", on_bits(vimco, pathwise.iwae))
        yield Twin("Renyi", on_bits(partial(renyi, alpha=ALPHA), pathwise_renyi))
        yield Twin("VRMax", on_bits(vr_max, pathwise.vr_max))
        yield from _baselines(params, K)
    if program == "decoders":
        yield Twin("LeaveOneOut", _on_decoders(params, K, mixed_rloo, pathwise.elbo))
        yield Twin("VIMCO", _on_decoders(params, K, mixed, pathwise.iwae))
        mixed_renyi = partial(mixed, alpha=ALPHA)
        yield Twin("Renyi", _on_decoders(params, K, mixed_renyi, pathwise_renyi))


def _baselines(params: Params, K: int) -> Iterator[Twin]:
    running = RunningMean()
    bias = params["model.bias"]
    network = nn.Sequential(nn.Linear(len(bias), 64), nn.Tanh(), nn.Linear(64, 1)).to(bias.dtype)
    learned = Baseline(network)

    def decaying(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = belief_net_tables(params, x, K)
        S = reinforce(log_p, log_q, running.value)
        running.update(log_p - log_q)
        return pathwise.elbo(log_p, log_q), S

    def neural(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = belief_net_tables(params, x, K)
        return pathwise.elbo(log_p, log_q), nvil(log_p, log_q, learned.network(x).squeeze(-1))

    yield Twin("DecayingAverageBaseline", decaying, running)
    yield Twin("NeuralBaseline", neural, learned)


class Baseline:
    """A baseline network; the caller optimizes it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network


def _on_decoders(
    params: Params, K: int, surrogate: Callable[[Tensor, Tensor, Tensor], Tensor], bound: Bound
) -> Surrogate:
    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        draw = decoders.draw(params, x, K)
        log_p = decoders.log_p(params, x, draw)
        log_c, log_z = decoders.log_q_parts(params, x, draw)
        return bound(log_p, log_c + log_z), surrogate(log_p, log_c + log_z, log_c)

    return evaluate
