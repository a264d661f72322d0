"""Convergence of a training: predicted gain and remedy."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_lvm.training.extrapolation import remaining_gain

if TYPE_CHECKING:
    from ppl_lvm.training.loop import Training

FEWEST_STEPS = 200  # at a constant rate, for a trend: the first branch of a schedule is there
SMALL_GAIN = 0.01  # nats per row, where no accuracy is asked for


@dataclass(frozen=True)
class Arrival:
    """Convergence of a training.

    Attributes:
        converged: the predicted gain is below the accuracy; None where noise hides it.
        predicted_gain: nats per row that more steps would add; None where it is unknown.
        remedy: one sentence on what to do; "" where nothing is to be done.
    """

    converged: bool | None
    predicted_gain: float | None
    remedy: str = ""

    def record(self) -> dict[str, Any]:
        """The entries of the results."""
        return dict(vars(self))


def arrival(training: "Training") -> Arrival:
    """Convergence by the ends of the branches, else by the trend of the bounds."""
    schedule = training.adaptive
    if schedule is not None and math.isfinite(schedule.predicted_gain):
        gain = schedule.predicted_gain
        if gain <= schedule.threshold:
            return Arrival(True, gain)
        if gain <= 2 * schedule.error:
            return _hidden(gain, schedule.error)
        return Arrival(False, gain, _remedy(gain, schedule.accuracy, schedule.moving))
    bounds = -training.sign * np.array(training.history["bound"])
    if len(bounds) < FEWEST_STEPS or not np.isfinite(bounds).all():
        few = f"{len(bounds)} steps are too few to predict what more would gain."
        return Arrival(None, None, f"{few} Raise num_steps.")
    gain, error = remaining_gain(bounds)
    accuracy = training.options.accuracy or SMALL_GAIN
    if gain + 2 * error <= accuracy:
        return Arrival(True, gain)
    if gain <= 2 * error:
        return _hidden(gain, error)
    return Arrival(False, gain, _remedy(gain, accuracy))


def _hidden(gain: float, error: float) -> Arrival:
    hidden = f"The noise of the bound hides gains below {2 * error:.2g} nats per row."
    return Arrival(None, gain, f"{hidden} Raise num_steps, or num_particles of the objective.")


def _remedy(gain: float, accuracy: float, moving: str = "") -> str:
    slow = (
        f" {moving} moves as fast as the learning rate allows: raise lr, or divide columns "
        "that are in large units."
        if moving
        else ""
    )
    return (
        f"More steps would add about {gain:.2g} nats per row (asked: {accuracy:g}). Raise "
        f"num_steps.{slow}"
    )


def describe_arrival(results: dict[str, Any]) -> str:
    """One sentence for the end of a fit."""
    gain, steps = results["predicted_gain"], f"{results['steps']:,} steps"
    if results["converged"]:
        return f"Converged after {steps}: more would add about {gain:.1g} nats per row."
    known = "Not converged" if results["converged"] is False else "Convergence is not known"
    return f"{known} after {steps}. {results['remedy']}"
