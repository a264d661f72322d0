"""Every estimator that applies to a pair, from three hands: ours, Pyro's, and plain torch.

An implementation is called to take one gradient: it adds the gradient of the loss (a sum over
data, as `loss_and_grads`) to the parameters' `.grad` and returns the loss.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import ReweightedWakeSleep as PyroReweightedWakeSleep
from torch import Tensor

from ppl_lvm import estimators
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
from ppl_lvm.benchmarks.programs import Bound, Known, by_hand
from ppl_lvm.pair import Pair

ALPHA = 0.5
BOUNDS: dict[str, Bound] = {
    "ELBO": pathwise.elbo,
    "IWAE": pathwise.iwae,
    "Rényi": partial(pathwise.renyi, alpha=ALPHA),
    "max": pathwise.vr_max,
}


class Programs(Protocol):
    """A model and a guide that run as they are."""

    model: Any
    guide: Any


@dataclass(frozen=True)
class Implementation:
    """One estimator by one hand.

    Attributes:
        estimator: our class's name (Pyro's own for what we have not).
        by: "ppl_lvm", "Pyro" or "hand".
        target: what its gradient should be that of, as our classes say it.
        step: takes the batch; gradient into `.grad`, returns the loss.
        forced: whether its draws are the guide's sites alone, so that they can be enumerated.
        declared: what the class says of its own bias: unbiased or not.
        objective: the `pyro.infer.ELBO`; of a hand-written one what its target depends on, if any.
    """

    estimator: str
    by: str
    target: str
    step: Callable[[Tensor], float]
    forced: bool = False
    declared: bool = True
    objective: Any = None


def ours(pair: Programs, num_particles: int) -> Iterator[Implementation]:
    """Every class of `estimators.__all__`; those that refuse the pair do so when called."""
    for name in estimators.__all__:
        cls: Any = getattr(estimators, name)
        offered = inspect.signature(cls).parameters
        settings: dict[str, Any] = {"num_particles": num_particles, "alpha": ALPHA}
        given = {key: value for key, value in settings.items() if key in offered}
        try:
            objective = cls(**given)
        except ValueError as refusal:
            yield Implementation(name, "ppl_lvm", cls.target, partial(_refuse, refusal))
            continue
        yield Implementation(
            name,
            "ppl_lvm",
            cls.target,
            partial(_pyro_step, objective, pair),
            forced=cls.draw is estimators.IWAE.draw,
            declared=cls.unbiased,
            objective=objective,
        )


def _refuse(refusal: ValueError, *batch: Tensor) -> float:
    raise refusal


def pyros(pair: Programs, num_particles: int, nesting: int = 1) -> Iterator[Implementation]:
    """Pyro's counterparts, by the name of ours."""
    common = {
        "num_particles": num_particles,
        "vectorize_particles": True,
        "max_plate_nesting": nesting,
    }
    objectives = {
        "Trace_ELBO": ("ELBO", Trace_ELBO(**common)),
        "TraceMeanField_ELBO": ("ELBO", TraceMeanField_ELBO(**common)),
        "TraceGraph_ELBO": ("ELBO", TraceGraph_ELBO(**common)),
        "TraceEnum_ELBO": ("ELBO", TraceEnum_ELBO(strict_enumeration_warning=False, **common)),
        "RenyiELBO(0)": ("IWAE", RenyiELBO(alpha=0.0, **common)),
        f"RenyiELBO({ALPHA})": ("Rényi", RenyiELBO(alpha=ALPHA, **common)),
        "ReweightedWakeSleep": (
            "wake",
            PyroReweightedWakeSleep(model_has_params=True, insomnia=1.0, **common),
        ),
    }
    for name, (target, objective) in objectives.items():
        step = partial(_others_step, objective, pair)
        yield Implementation(name, "Pyro", target, step, forced=True)


def _others_step(objective: Any, pair: Programs, *batch: Tensor) -> float:
    """Pyro's step. Where it cannot take a pair it fails in many ways: each is a refusal here."""
    try:
        return _pyro_step(objective, pair, *batch)
    except (KeyError, AttributeError, RuntimeError, ValueError) as failure:
        raise ValueError(f"{type(failure).__name__}: {failure}") from failure


def _pyro_step(objective: Any, pair: Programs, *batch: Tensor) -> float:
    loss = objective.loss_and_grads(pair.model, pair.guide, *batch)
    return float(loss[0] if isinstance(loss, tuple) else loss)  # Pyro's wake-sleep has two


def hands(known: Known, pair: Pair, num_particles: int) -> Iterator[Implementation]:
    """The hand-written ones that this program allows, over the pair's own tensors."""
    params = by_hand(pair.leaves)
    make = {"belief_net": _bits, "linear_gaussian": _paths, "decoders": _mixed}[known.name]
    for name, target, surrogate in make(params, num_particles):
        step = partial(_hand_step, surrogate)
        declared = name not in BIASED
        yield Implementation(name, "hand", target, step, declared=declared, objective=EVEN_PATH)


EVEN_PATH = SimpleNamespace(betas=[t / 4 for t in range(5)])  # of the hand-written TVO
BIASED = {"ReweightedWakeSleep", "ThermodynamicELBO", "GumbelSoftmax", "StraightThrough", "CUBO"}
Surrogate = Callable[[Tensor], tuple[Tensor, Tensor]]
Named = tuple[str, str, Surrogate]


def _hand_step(surrogate: Surrogate, x: Tensor) -> float:
    bound, what = surrogate(x)
    (-what.sum()).backward()
    return -float(bound.detach().sum())


def _bits(params: dict[str, Tensor], K: int) -> Iterator[Named]:
    """On the belief net: scores, and the estimators made for bits."""

    def scored(surrogate: Bound, bound: Bound) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            z = belief_net.draw(params, x, K)
            tables = belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)
            return bound(*tables), surrogate(*tables)

        return both

    elbo, iwae, renyi = BOUNDS["ELBO"], BOUNDS["IWAE"], BOUNDS["Rényi"]
    yield "ScoreFunction", "ELBO", scored(score.reinforce, elbo)
    yield "LeaveOneOut", "ELBO", scored(score.rloo, elbo)
    yield "VIMCO", "IWAE", scored(score.vimco, iwae)
    yield "Renyi", "Rényi", scored(partial(score.renyi, alpha=ALPHA), renyi)
    yield "ReweightedWakeSleep", "wake", scored(wake.wake, iwae)
    yield "ThermodynamicELBO", "TVO", scored(partial(wake.tvo, num_partitions=4), elbo)
    yield from _uniform_bits(params, K)


class Signal:
    """f(z) = log p - log q, q's parameters held still; it keeps its values, which are the bound."""

    def __init__(self, params: dict[str, Tensor], x: Tensor) -> None:
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


def _uniform_bits(params: dict[str, Tensor], K: int) -> Iterator[Named]:
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

    def relaxation(x: Tensor, straight: bool) -> tuple[Tensor, Tensor]:
        f = Signal(params, x)
        logits, u = uniform(x, K)
        soft = relaxed.concrete(logits, u[0], temperature=0.5)
        surrogate = f(relaxed.straight_through_bits(soft) if straight else soft).mean(0)
        return f.bound(), surrogate

    yield "DisARM", "ELBO", disarm
    yield "REBAR", "ELBO", rebar
    yield "GumbelSoftmax", "ELBO", partial(relaxation, straight=False)
    yield "StraightThrough", "ELBO", partial(relaxation, straight=True)


def _paths(params: dict[str, Tensor], K: int) -> Iterator[Named]:
    """On the linear-Gaussian model: everything pathwise."""
    still = {k: v.detach() if k.startswith("guide") else v for k, v in params.items()}

    def plain(bound: Bound) -> Surrogate:
        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            z = linear_gaussian.draw(params, x, K)
            value = bound(linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(params, x, z))
            return value, value

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

    for name, target in (("ELBO", "ELBO"), ("IWAE", "IWAE"), ("Renyi", "Rényi"), ("VRMax", "max")):
        yield name, target, plain(BOUNDS[target])
    yield "StickingTheLanding", "ELBO", still_guide(stl, BOUNDS["ELBO"])
    yield "DReG", "IWAE", still_guide(pathwise.dreg, BOUNDS["IWAE"])
    dreg_renyi = partial(pathwise.dreg_renyi, alpha=ALPHA)
    yield "DReGRenyi", "Rényi", still_guide(dreg_renyi, BOUNDS["Rényi"])


def _mixed(params: dict[str, Tensor], K: int) -> Iterator[Named]:
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

    yield "LeaveOneOut", "ELBO", scored(leave_one_out, BOUNDS["ELBO"])
    yield "VIMCO", "IWAE", scored(score.mixed, BOUNDS["IWAE"])
    yield "Renyi", "Rényi", scored(partial(score.mixed, alpha=ALPHA), BOUNDS["Rényi"])
