"""The hand-written estimators as implementations, on the programs that each can treat.

They work on the pair's own parameters, so that the same random numbers must give the same
gradients. What one learns or keeps (a baseline, a constant) is its `objective`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ppl_lvm.benchmarks.gradient_suite.implementations import ALPHA, BOUNDS, Implementation
from ppl_lvm.benchmarks.gradient_suite.programs import Bound, KnownProgram, handwritten_loss
from ppl_lvm.benchmarks.handwritten import (
    belief_net,
    binary,
    decoders,
    linear_gaussian,
    pathwise,
    relaxed,
    score,
    wake,
)
from ppl_lvm.programs.pair import ModelGuidePair

Params = dict[str, Tensor]
Surrogate = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> bound, what to maximize; (B,) each
Named = tuple[str, str, Surrogate, object]
BIASED = {"ReweightedWakeSleep", "ThermodynamicELBO", "GumbelSoftmax", "StraightThrough"}
TEMPERATURE = 0.5


@dataclass
class Running:
    """A number that follows the log-weights of past steps: a baseline, or the constant of χ."""

    value: float = 0.0
    beta: float = 0.9
    n: float = 2.0  # the order of CUBO

    def average(self) -> float:
        return self.value

    def follow(self, log_w: Tensor) -> None:
        self.value = self.beta * self.value + (1 - self.beta) * float(log_w.detach().mean())


@dataclass
class Path:
    """Temperatures of the thermodynamic path."""

    betas: list[float] = field(default_factory=lambda: wake.log_spaced(5))


@dataclass
class Baseline:
    """A network of x; its gradient comes with the surrogate's, its optimizer is the caller's."""

    network: nn.Module


def handwritten(
    known: KnownProgram, pair: ModelGuidePair, num_particles: int
) -> Iterator[Implementation]:
    """The hand-written ones that this program allows, over the pair's own tensors."""
    params = handwritten_loss(pair.unconstrained_parameters)
    make = {"belief_net": _bits, "linear_gaussian": _paths, "decoders": _mixed}[known.name]
    for name, target, surrogate, objective in make(params, num_particles):
        step = partial(_hand_step, surrogate)
        declared = name not in BIASED
        yield Implementation(name, "hand", target, step, declared=declared, objective=objective)


def _hand_step(surrogate: Surrogate, x: Tensor) -> float:
    bound, what = surrogate(x)
    (-what.sum()).backward()
    return -float(bound.detach().sum())


def _tvo(betas: list[float]) -> tuple[Bound, Bound]:
    return partial(wake.tvo_bound, betas=betas), partial(wake.tvo, betas=betas)


def _exp_cubo_step(log_p: Tensor, log_q: Tensor, constant: Running) -> tuple[Tensor, Tensor]:
    bound = -wake.cubo(log_p, log_q, constant.n)
    what = wake.exp_cubo(log_p, log_q, constant.n, constant.value) / constant.n
    constant.follow(bound)
    return -bound, what  # an upper bound is descended


def _bits(params: Params, K: int) -> Iterator[Named]:
    """On the belief net: scores, and the estimators made for bits."""

    def scored(surrogate: Bound, bound: Bound) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            z = belief_net.draw(params, x, K)
            tables = belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)
            return bound(*tables), surrogate(*tables)

        return both

    elbo, iwae, renyi = BOUNDS["ELBO"], BOUNDS["IWAE"], BOUNDS["Rényi"]
    path = Path()
    tvo_bound, tvo = _tvo(path.betas)
    yield "ScoreFunction", "ELBO", scored(score.reinforce, elbo), None
    yield "LeaveOneOut", "ELBO", scored(score.rloo, elbo), None
    yield "VIMCO", "IWAE", scored(score.vimco, iwae), None
    yield "Renyi", "Rényi", scored(partial(score.renyi, alpha=ALPHA), renyi), None
    yield "VRMax", "max", scored(score.vr_max, BOUNDS["max"]), None
    yield "ReweightedWakeSleep", "wake", scored(wake.wake, iwae), None
    yield "ThermodynamicELBO", "TVO", scored(tvo, tvo_bound), path
    yield from _baselines(params, K)
    yield from _uniform_bits(params, K)


def _baselines(params: Params, K: int) -> Iterator[Named]:
    """On the belief net: what keeps or learns a number beside the parameters."""
    running, constant = Running(), Running()
    observed = len(params["model.bias"])
    network = nn.Sequential(nn.Linear(observed, 64), nn.Tanh(), nn.Linear(64, 1))
    learned = Baseline(network.to(params["model.bias"].dtype))

    def tables(x: Tensor) -> tuple[Tensor, Tensor]:
        z = belief_net.draw(params, x, K)
        return belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)

    def decaying(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = tables(x)
        what = score.reinforce(log_p, log_q, running.value)
        running.follow(log_p - log_q)
        return pathwise.elbo(log_p, log_q), what

    def nvil(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = tables(x)
        baseline = learned.network(x).squeeze(-1)
        return pathwise.elbo(log_p, log_q), score.nvil(log_p, log_q, baseline)

    def exp_cubo(x: Tensor) -> tuple[Tensor, Tensor]:
        return _exp_cubo_step(*tables(x), constant)

    yield "DecayingAverageBaseline", "ELBO", decaying, running
    yield "NeuralBaseline", "ELBO", nvil, learned
    yield "CUBO", "exp CUBO", exp_cubo, constant


class Signal:
    """f(z) = log p - log q, q's parameters held still; it keeps its values, which are the bound."""

    def __init__(self, params: Params, x: Tensor) -> None:
        self.params, self.x = params, x
        self.still = {name: value.detach() for name, value in params.items()}
        self.values: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        log_p = belief_net.log_p(self.params, self.x, z)
        self.values.append(log_p - belief_net.log_q(self.still, self.x, z))
        return self.values[-1]

    def held(self, z: Tensor) -> Tensor:
        """The same with all parameters held still."""
        log_p = belief_net.log_p(self.still, self.x, z)
        return log_p - belief_net.log_q(self.still, self.x, z)

    def bound(self) -> Tensor:
        """Mean over all that was asked, (B,)."""
        return torch.stack(self.values).mean((0, 1))


def _uniform_bits(params: Params, K: int) -> Iterator[Named]:
    """On the belief net: what draws by uniform noise of its own."""

    def uniform(x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        logits = belief_net.guide_logits(params, x).expand(draws, -1, -1)
        tiny = torch.finfo(x.dtype).tiny
        return logits, torch.rand(2, *logits.shape, dtype=x.dtype).clamp_min(tiny)

    def disarm(x: Tensor) -> tuple[Tensor, Tensor]:
        f = Signal(params, x)
        logits, u = uniform(x, max(1, K // 2))  # a pair of draws is two particles
        surrogate = binary.disarm(logits, u[0], f).mean(0)
        return f.bound(), surrogate

    def rebar(x: Tensor) -> tuple[Tensor, Tensor]:
        f = Signal(params, x)
        logits, u = uniform(x, K)
        surrogate = binary.rebar(logits, u[0], u[1], f, f.held).mean(0)
        return f.bound(), surrogate

    def concrete(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, u = uniform(x, K)
        soft = relaxed.concrete(logits, u[0], TEMPERATURE)
        prior = relaxed.log_concrete(params["model.prior"], soft, TEMPERATURE)
        log_q = relaxed.log_concrete(logits, soft, TEMPERATURE)
        value = (prior + belief_net.log_likelihood(params, x, soft) - log_q).mean(0)
        return value, value

    def straight(x: Tensor) -> tuple[Tensor, Tensor]:
        bits = belief_net.draw(params, x, K)
        z = relaxed.straight_through_bits(bits, belief_net.guide_logits(params, x).sigmoid())
        value = (belief_net.log_p(params, x, z) - belief_net.log_q(params, x, z)).mean(0)
        return value, value

    yield "DisARM", "ELBO", disarm, None
    yield "REBAR", "ELBO", rebar, None
    yield "GumbelSoftmax", "relaxed ELBO", concrete, None
    yield "StraightThrough", "ELBO", straight, None


def _paths(params: Params, K: int) -> Iterator[Named]:
    """On the linear-Gaussian model: everything pathwise, and what weighs draws held still."""
    still = {k: v.detach() if k.startswith("guide") else v for k, v in params.items()}

    def tables(x: Tensor, held: bool = False) -> tuple[Tensor, Tensor]:
        z = linear_gaussian.draw(params, x, K)
        z = z.detach() if held else z
        return linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(params, x, z)

    def plain(bound: Bound) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            value = bound(*tables(x))
            return value, value

        return both

    def weighed(surrogate: Bound, bound: Bound) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            held = tables(x, held=True)
            return bound(*held), surrogate(*held)

        return both

    def still_guide(
        surrogate: Callable[[Tensor, Tensor, Tensor], Tensor], bound: Bound
    ) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            z = linear_gaussian.draw(params, x, K)
            log_p, log_q = linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(still, x, z)
            return bound(log_p, log_q), surrogate(z, log_p, log_q)

        return both

    def stl(z: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return pathwise.stl(log_p, log_q)

    path = Path()
    tvo_bound, tvo = _tvo(path.betas)
    for name, target in (("ELBO", "ELBO"), ("IWAE", "IWAE"), ("Renyi", "Rényi"), ("VRMax", "max")):
        yield name, target, plain(BOUNDS[target]), None
    yield "StickingTheLanding", "ELBO", still_guide(stl, BOUNDS["ELBO"]), None
    yield "DReG", "IWAE", still_guide(pathwise.dreg, BOUNDS["IWAE"]), None
    dreg_renyi = partial(pathwise.dreg_renyi, alpha=ALPHA)
    yield "DReGRenyi", "Rényi", still_guide(dreg_renyi, BOUNDS["Rényi"]), None
    yield "ReweightedWakeSleep", "wake", weighed(wake.wake, BOUNDS["IWAE"]), None
    yield "ThermodynamicELBO", "TVO", weighed(tvo, tvo_bound), path


def _mixed(params: Params, K: int) -> Iterator[Named]:
    """On the mixture of decoders: the score for the category, the path for z."""

    def scored(surrogate: Callable[[Tensor, Tensor, Tensor], Tensor], bound: Bound) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            draw = decoders.draw(params, x, K)
            log_p = decoders.log_p(params, x, draw)
            log_c, log_z = decoders.log_q_parts(params, x, draw)
            return bound(log_p, log_c + log_z), surrogate(log_p, log_c + log_z, log_c)

        return both

    def leave_one_out(log_p: Tensor, log_q: Tensor, log_c: Tensor) -> Tensor:
        log_w = (log_p - log_q).detach()
        others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
        return (log_p - (log_q - log_c) + (log_w - others) * log_c).mean(0)

    yield "LeaveOneOut", "ELBO", scored(leave_one_out, BOUNDS["ELBO"]), None
    yield "VIMCO", "IWAE", scored(score.mixed, BOUNDS["IWAE"]), None
    yield "Renyi", "Rényi", scored(partial(score.mixed, alpha=ALPHA), BOUNDS["Rényi"]), None
