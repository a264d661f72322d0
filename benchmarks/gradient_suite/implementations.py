"""Implementations of estimators on a pair: ours and Pyro's.

`handwritten_adapters.py` has those in plain torch. A call of an implementation adds the gradient
of the loss (a sum over rows, as `loss_and_grads`) to the parameters' `.grad` and returns the loss.
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
    """A model and a guide."""

    model: Any
    guide: Any


@dataclass(frozen=True)
class Implementation:
    """One implementation of an estimator.

    Attributes:
        estimator: name of our class, or Pyro's name without a counterpart.
        by: "ppl_lvm", "Pyro" or "hand".
        target: declared target of the gradient.
        step: adds the gradient of a batch to `.grad` and returns the loss.
        forced: its only draws are the guide's sites, so that they can be enumerated.
        declared: the class declares `unbiased`.
        objective: the `pyro.infer.ELBO`; the learned state of a hand-written one, or None.
    """

    estimator: str
    by: str
    target: str
    step: Callable[[Tensor], float]
    forced: bool = False
    declared: bool = True
    objective: Any = None


def ours(pair: Programs, num_particles: int) -> Iterator[Implementation]:
    """All classes of `estimators.__all__`; a class that rejects the pair raises when called."""
    for name in estimators.__all__:
        cls: Any = getattr(estimators, name)
        accepted = inspect.signature(cls).parameters
        settings: dict[str, Any] = {"num_particles": num_particles, "alpha": ALPHA}
        options = {key: value for key, value in settings.items() if key in accepted}
        try:
            objective = cls(**options)
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
    """Pyro's objectives."""
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
    """Pyro's step; its various failures on unsupported pairs become ValueErrors."""
    try:
        return _pyro_step(objective, pair, *batch)
    except (KeyError, AttributeError, RuntimeError, ValueError) as failure:
        raise ValueError(f"{type(failure).__name__}: {failure}") from failure


def _pyro_step(objective: Any, pair: Programs, *batch: Tensor) -> float:
    loss = objective.loss_and_grads(pair.model, pair.guide, *batch)
    return float(
        loss[0] if isinstance(loss, tuple) else loss
    )  # Pyro's wake-sleep returns two losses
