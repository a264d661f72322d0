"""Hand-written twins of the estimators, on programs with known answers.

A module of this folder with a function

    twins(program, params, num_particles) -> Iterator[Twin]

contributes the twins that it can compute on the hand-written program of that name ("belief_net",
"linear_gaussian", "decoders"). A twin has the name of our class; targets and bias are the class's.
Twins work on the pair's parameters, so that equal random numbers give equal gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ppl_lvm.benchmarks.handwritten import belief_net, linear_gaussian

ALPHA = 0.5  # order of the Rényi bounds
Params = dict[str, Tensor]
Bound = Callable[[Tensor, Tensor], Tensor]  # log p, log q (K, B) -> (B,)
Surrogate = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> bound, S to ascend; (B,) each


class Twin(NamedTuple):
    """A hand-written estimator.

    Attributes:
        estimator: name of our class.
        surrogate: bound and S of a batch.
        state: object with a learned baseline or constant, or None.
    """

    estimator: str
    surrogate: Surrogate
    state: Any = None


class RunningMean:
    """Decaying average of log-weights of past steps: a baseline, or the constant of χ."""

    def __init__(self, beta: float = 0.9, n: float = 2.0) -> None:
        self.value = 0.0
        self.beta = beta
        self.n = n  # the order of CUBO

    def average(self) -> float:
        return self.value

    def update(self, log_w: Tensor) -> None:
        self.value = self.beta * self.value + (1 - self.beta) * float(log_w.detach().mean())


def belief_net_tables(params: Params, x: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
    """log p and log q of K draws of bits, (K, B) each."""
    z = belief_net.draw(params, x, num_particles)
    return belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)


def detached_tables(
    program: str, params: Params, num_particles: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """x -> log p and log q of K draws without pathwise gradient; None for other programs."""
    if program == "belief_net":
        return lambda x: belief_net_tables(params, x, num_particles)

    def gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
        z = linear_gaussian.draw(params, x, num_particles).detach()
        return linear_gaussian.log_p(params, x, z), linear_gaussian.log_q(params, x, z)

    return gaussian if program == "linear_gaussian" else None


def on_tables(
    tables: Callable[[Tensor], tuple[Tensor, Tensor]], surrogate: Bound, bound: Bound
) -> Surrogate:
    """Bound and surrogate from the same draws."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = tables(x)
        return bound(log_p, log_q), surrogate(log_p, log_q)

    return evaluate
