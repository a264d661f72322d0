"""Every estimator that applies to a pair: ours and Pyro's (`hands` has those in plain torch).

An implementation is called to take one gradient: it adds the gradient of the loss (a sum over
data, as `loss_and_grads`) to the parameters' `.grad` and returns the loss.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import ReweightedWakeSleep as PyroReweightedWakeSleep
from torch import Tensor

from ppl_lvm import estimators
from ppl_lvm.benchmarks.gradient_suite.programs import Bound
from ppl_lvm.benchmarks.handwritten import pathwise
from ppl_lvm.benchmarks.handwritten.twins import ALPHA

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
            forced=cls.sampling == "particles",
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
