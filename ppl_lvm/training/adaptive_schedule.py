"""Learning rates and end of training by predicted gain.

Gradient steps at a constant learning rate approach the optimum, and then wander around it: of the
bound a share proportional to the rate is lost. Where they wander, a smaller rate gains that share;
before, it only delays. So training has a trunk at the optimizer's rate η, and branches that leave
it after T = 200, 400, 800, … of its steps. In a branch of D = T / 4 steps the rate falls to 0,

    η_t = η (1 − t / D),        t = 0, …, D,

and the bound L_k at its end, with equal random numbers, is what training would arrive at now. If
the gain that remains by extrapolation of L_1, L_2, … (`power_law_remaining_gain`) is below the
accuracy, training ends there. Else the trunk goes on from where the branch left it. The number of
steps, those of branches included, is a limit; the last branch ends at it. Branches before the last,
whose steps are lost, take at most a sixth of the limit: under a small limit there is one, and then
a last that uses all steps. The best end of a branch is the result.

The bound decides, and not R̂ of the iterates: parameters on which it does not depend never settle,
and the noise at a constant rate hides a drift.

References:
    Hägele, Bakouch, Kosson, Ben Allal, von Werra, Jaggi (2024). Scaling laws and compute-optimal
    training beyond fixed training durations. https://arxiv.org/abs/2405.18392 (branches)
    Welandawe, Andersen, Vehtari, Huggins (2022). A framework for improving the reliability of
    black-box variational inference. https://arxiv.org/abs/2203.15945 (stopping by predicted gain)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_lvm.core import distributed
from ppl_lvm.core.storage import strip_prefix
from ppl_lvm.data import Data
from ppl_lvm.data.selection import sample_rows
from ppl_lvm.training.evaluation import evaluate
from ppl_lvm.training.extrapolation import power_law_remaining_gain

if TYPE_CHECKING:
    from ppl_lvm.training.loop import Training

FIRST_BRANCH, GROWTH = 200, 2  # steps of the trunk; their ratio at consecutive branches
DECAY = 4  # steps of the trunk for a step of a branch
LOST = 1 / 6  # of the limit, in branches that the trunk does not go on from
FEWEST_DECAY = 100  # steps of a branch
REPEATS, MOST_REPEATS = 4, 32  # evaluations of a bound
ROWS = 2000  # evaluated where batches are smaller than the data
FULL_SPEED = 0.3  # of the rate, in the mean: a parameter is far from its optimum

State = dict[str, Tensor]  # of a pair


class ConstantThenDecay:
    """Schedule of the learning rate: constant, then linear to 0; stepped after every step.

    Attributes:
        rate: η of the first group of parameters.

    Args:
        optimizer: has the rates η.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer  # its list of groups is another one after a resume
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.rate = self._rates[0]
        self._constant, self._decay, self._done = 0, 1, 0

    def plan(self, constant: int, decay: int) -> None:
        """Begin a number of constant steps, and one of steps in which the rate falls."""
        self._constant, self._decay, self._done = constant, decay, 0
        self._set()

    def step(self) -> None:
        """Count a step."""
        self._done += 1
        if self._done > self._constant:
            self._set()

    def _set(self) -> None:
        factor = 1 - min(max(self._done - self._constant, 0) / self._decay, 1.0)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def state_dict(self) -> dict[str, Any]:
        return {"rates": self._rates, "steps": [self._constant, self._decay, self._done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rates = state["rates"]
        self._constant, self._decay, self._done = state["steps"]


@dataclass
class Point:
    """State of a pair and the bounds there, nats per row, larger is better, with equal draws."""

    state: State = field(default_factory=dict)
    values: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        return float(np.mean(self.values)) if self.values else -math.inf


class AdaptiveSchedule:
    """Trunk and branches of one training; see the module.

    Attributes:
        accuracy: nats per row.
        rates: the schedule of the learning rate.
        finished: True once the predicted gain is below the accuracy.
        branch_begin, branch_end: steps after which `leave_trunk` and `measure` are due.
        predicted_gain: nats per row that further steps would add; NaN before it is known.
        error: Monte-Carlo error of the last gain, nats per row.
        moving: name of a parameter that still moves by about the learning rate at every step.
    """

    @classmethod
    def of(cls, training: "Training") -> Self | None:
        """The schedule of a training; None where its options ask for none or it has too few steps.

        A line search has no rate, and the rows of a table are not among the parameters.
        """
        options, runner = training.options, training.step_runner
        few = options.num_steps < 2 * (FIRST_BRANCH + FEWEST_DECAY) + options.kl_annealing
        if not options.accuracy or few or runner.line_search or training.row_tables:
            return None
        schedule = cls(training, options.accuracy)
        runner.schedule = schedule.rates
        return schedule

    def __init__(self, training: "Training", accuracy: float) -> None:
        self.training, self.accuracy = training, accuracy
        self.finished, self.predicted_gain, self.moving = False, math.nan, ""
        options = training.options
        self._repeats = REPEATS
        self._best, self._last = Point(), Point()
        self._trunk: dict[str, Tensor] = {}  # pair and optimizer where the branch left
        self._gains: list[float] = []
        self._log_steps: list[float] = []
        self.error = math.inf  # of the last gain
        rows = training.held_out
        if rows is None and options.batch_size < len(training.train):
            rows = sample_rows(training.train, max(ROWS, options.batch_size), options.seed)
        self._rows: Data = rows or training.train
        self.rates = ConstantThenDecay(training.step_runner.optimizer)
        self._trunk_steps = self._extension = 0  # where the branch leaves; since the one before
        self.branch_begin = self.branch_end = 0
        self._plan(FIRST_BRANCH + options.kl_annealing)

    def _plan(self, trunk_steps: int) -> None:
        """Plan a branch that leaves after so many steps of the trunk; later if it is the last."""
        step, left = self.branch_end, self.training.options.num_steps - self.branch_end
        extension, decay = trunk_steps - self._trunk_steps, _decay(trunk_steps)
        following = (GROWTH - 1) * trunk_steps + _decay(GROWTH * trunk_steps)
        lost = step - self._trunk_steps + decay
        costly = step > 0 and lost > LOST * self.training.options.num_steps
        if costly or left < extension + decay + following:  # d = (T + e) / 4 and e + d = left
            decay = max((self._trunk_steps + left) // (DECAY + 1), min(FEWEST_DECAY, left))
            extension = left - decay
        self._trunk_steps, self._extension = self._trunk_steps + extension, extension
        self.branch_begin, self.branch_end = step + extension, step + extension + decay
        self.rates.plan(extension, decay)

    @property
    def events(self) -> tuple[int, int]:
        """Steps after which `advance` is due."""
        return self.branch_begin, self.branch_end

    @property
    def next_event(self) -> int:
        """The next of them."""
        begun = self.training.step_number >= self.branch_begin
        return self.branch_end if begun else self.branch_begin

    # The trunk

    def leave_trunk(self) -> None:
        """Note where the branch leaves the trunk."""
        state = self.training.pair.state()
        lr, steps = self.rates.rate, self._extension
        moved = {
            _shown(name): float((t - self._trunk[name]).abs().max())
            for name, t in state.items()
            if name in self._trunk and t.is_floating_point() and t.numel()
        }
        fastest = max(moved, key=lambda name: moved[name], default="")
        self.moving = fastest if fastest and moved[fastest] > FULL_SPEED * lr * steps else ""
        self._trunk = state | {n: t.clone() for n, t in self._optimizer_tensors().items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """Tensors of the optimizer's state by parameter and name."""
        optimizer = self.training.step_runner.optimizer
        return {
            f"optimizer/{i}/{name}": value
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
            for name, value in optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor)
        }

    def _return_to_trunk(self) -> None:
        self.training.pair.load_state(self._trunk)
        with torch.no_grad():
            for name, tensor in self._optimizer_tensors().items():
                tensor.copy_(self._trunk[name])

    # Bounds

    def _evaluated(self, state: State) -> Point:
        """The bounds at a state, which is set for a moment."""
        training, before = self.training, self.training.pair.state()
        training.pair.load_state(state)
        try:
            values = distributed.broadcast_from_first(
                evaluate(training, self._rows, repeats=self._repeats, at_once=ROWS)
                if distributed.rank() == 0
                else None
            )
        finally:
            training.pair.load_state(before)
        return Point(state, [-training.sign * value for value in values])

    def measure(self) -> None:
        """Evaluate the end of a branch, and extrapolate."""
        last, point = self._last, self._evaluated(self.training.pair.state())
        noise = _gain(last, point)[1] / (self.accuracy / 4) if last.values else 0.0
        if noise > 1 and self._repeats < MOST_REPEATS:
            self._repeats = min(MOST_REPEATS, math.ceil(self._repeats * noise**2))
            point, last = self._evaluated(point.state), self._evaluated(last.state)
            self._best = self._evaluated(self._best.state)
        if last.values:
            gain, self.error = _gain(last, point)
            self._gains.append(gain)
            before = self._trunk_steps - self._extension
            self._log_steps.append(math.log(self._trunk_steps / before))
            self.predicted_gain = power_law_remaining_gain(self._gains, self._log_steps)
        if not point.value <= self._best.value:
            self._best = point
        self._last = point

    @property
    def threshold(self) -> float:
        """The accuracy, or two Monte-Carlo errors up to five times the accuracy."""
        return max(self.accuracy, min(2 * self.error, 5 * self.accuracy))

    @property
    def arrived(self) -> bool:
        """True if more steps would gain less than the accuracy.

        A single gain may come from a plateau, and has to be smaller.
        """
        return self.predicted_gain <= self.threshold / (4 if len(self._gains) == 1 else 1)

    def go_on(self) -> None:
        """Go on with the trunk."""
        self._return_to_trunk()
        self._plan(GROWTH * self._trunk_steps)

    def finish(self) -> None:
        """Set the pair to the best end of a branch."""
        if self._best.state:
            self.training.pair.load_state(self._best.state)

    # Checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that the remaining steps depend on, by name."""
        parts = {"best": self._best.state, "last": self._last.state, "trunk": self._trunk}
        return {f"{part}/{n}": t for part, tensors in parts.items() for n, t in tensors.items()}

    def state(self) -> dict[str, Any]:
        """Plain data that the remaining steps depend on."""
        values = {"best": self._best.values, "last": self._last.values}
        return {"values": values} | {name: getattr(self, name) for name in PLAIN}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from the values of `tensors()` and `state()`."""
        parts = {part: strip_prefix(f"{part}/", tensors) for part in PARTS}
        for name in PLAIN:
            setattr(self, name, state[name])
        self._best = Point(parts["best"], state["values"]["best"])
        self._last = Point(parts["last"], state["values"]["last"])
        self._trunk = parts["trunk"]


# What a checkpoint holds of a schedule.
PARTS = ("best", "last", "trunk")
PLAIN = (
    *("finished", "predicted_gain", "moving", "branch_begin", "branch_end"),
    *("_trunk_steps", "_extension", "_repeats", "_gains", "_log_steps", "error"),
)


def _shown(name: str) -> str:
    """Name of a tensor of a pair's state as users know it."""
    return name.removeprefix("state/").split("/", 1)[1].removesuffix("_unconstrained")


def _decay(trunk_steps: int) -> int:
    """Steps of a branch that leaves after so many steps."""
    return max(FEWEST_DECAY, trunk_steps // DECAY)


def _gain(before: Point, after: Point) -> tuple[float, float]:
    """Gain between two points with equal draws, and its standard error."""
    gains = np.subtract(after.values, before.values)
    return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))


def advance(schedules: Sequence[AdaptiveSchedule]) -> None:
    """Begin or end a branch, of all restarts together: they share their rates."""
    first = schedules[0]
    step = first.training.step_number
    if step < first.branch_end:
        for schedule in schedules:
            schedule.leave_trunk()
        return
    for schedule in schedules:
        schedule.measure()
    if all(schedule.arrived for schedule in schedules):
        for schedule in schedules:
            schedule.finished = True
    elif step < first.training.options.num_steps:
        for schedule in schedules:
            schedule.go_on()
