"""Random starts trained together: R of everything abreast in one graph, each as in its own run.

A small step costs what calling its operations costs; R starts abreast pay that once. Each start
keeps its rows, its random numbers, its history and its checkpoint, and its parameters are views of
the stacked ones, so that the result is that of its own run, to rounding.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm.compiler.errors import CannotCaptureError
from ppl_lvm.compiler.optim.flat import FlatOptimizer
from ppl_lvm.compiler.passes.vectorize_restarts import VectorizedRecording, VectorizedStep
from ppl_lvm.core import distributed as processes
from ppl_lvm.core import torch_specs
from ppl_lvm.core.console import Progress
from ppl_lvm.training.loop import Training

MOST_ROWS = 1024  # of a batch: with more, arithmetic dominates and is quicker in turn


class VectorizedRestarts:
    """R trainings at the same step, as they stand.

    Args:
        trainings: of the same programs and options but for the seed.
        states: torch's random state of each.

    Raises:
        CannotCaptureError: they cannot go together; the message says why.
    """

    def __init__(self, trainings: Sequence[Training], states: Sequence[Tensor]) -> None:
        self.trainings = list(trainings)
        reject_unsupported(self.trainings)
        self.generators = [torch.Generator() for _ in trainings]
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        self._number = self.trainings[0].step_number  # one that has stopped does not count on
        self._steps: dict[int, VectorizedStep] = {}
        self._leaves: list[Tensor] = []
        self._optimizer: Any = None
        self._flat = FlatOptimizer()
        self._make([training.order.rows(training.step_number) for training in trainings])

    @property
    def _first(self) -> Training:
        return self.trainings[0]

    def run(self, progress: Progress) -> None:
        """Step all to the end, or until validation has stopped improving for each."""
        options, saved = self._first.options, time.monotonic()
        going = [training.going for training in self.trainings]
        while any(going) and self._number < options.num_steps:
            self._step(going)
            step = self._number
            at_end = step == options.num_steps
            evaluates = at_end or step % options.validate_every == 0
            due = time.monotonic() - saved >= options.checkpoint_seconds or at_end
            for r, training in enumerate(self.trainings):
                if not going[r]:
                    continue
                if evaluates:
                    going[r] = training.validate()
                if due or not going[r]:
                    torch.set_rng_state(self.generators[r].get_state())
                    training.save()
            if due:
                saved = time.monotonic()
            best = max(self.trainings, key=lambda t: -t.sign * t.history["bound"][-1])
            held_out = best.history["validation_bound"][-1:]
            progress.advance(step, best.history["bound"][-1], held_out)
        for training in self.trainings:
            training.finish()

    def _step(self, going: Sequence[bool]) -> None:
        begun = time.perf_counter()
        number = self._number
        rows = [training.order.rows(number) for training in self.trainings]
        for training in self.trainings:
            training.begin(number)
        count = _count(rows, self._first)
        step = self._steps.get(count) or self._make(rows)
        states = [generator.get_state() for generator in self.generators]
        self._take_rates()
        losses = step(self._batch(rows))
        if losses is None:
            self._fail(states)
        assert losses is not None
        loss, _ = losses
        self._number += 1
        seconds = (time.perf_counter() - begun) / len(self.trainings)
        for training, value, moves in zip(self.trainings, loss.tolist(), going, strict=True):
            if moves:
                training.end(value, count, seconds)
            training.stepping.after()

    def _batch(self, rows: Sequence[Tensor | None]) -> list[Tensor]:
        if rows[0] is None:
            return list(self._first.whole_batch())
        batches = [self._first.train.batch(r) for r in rows if r is not None]
        return [torch.stack(column) for column in zip(*batches, strict=True)]

    def _fail(self, states: Sequence[Tensor]) -> None:
        """Some start's loss or gradient is not finite: its own step says what and where."""
        for training, state in zip(self.trainings, states, strict=True):
            torch.set_rng_state(state)
            training.step()
        raise ArithmeticError("a start is not finite among the others, but is alone")

    # One for all

    def _make(self, rows: Sequence[Tensor | None]) -> VectorizedStep:
        recordings, batches = [], []
        for training, row in zip(self.trainings, rows, strict=True):
            batch = training.whole_batch() if row is None else training.train.batch(row)
            recordings.append(training.record(batch))
            batches.append(list(batch))
        parameters = [t.stepping.whole.gradient.parameters for t in self.trainings]
        abreast = VectorizedRecording(
            recordings,
            parameters,
            batches,
            rows[0] is None,
            [t.stepping.kl_weight for t in self.trainings],
            self.generators,
        )
        if self._leaves:
            abreast.parameters = self._leaves
        else:
            self._stack(abreast, parameters)
        compiled = self._first.options.engine == "compiled"
        step = VectorizedStep(abreast, self._batch(rows), self._optimizer, self._flat, compiled)
        self._hand_out(parameters)
        self._steps[_count(rows, self._first)] = step
        return step

    def _stack(self, abreast: VectorizedRecording, parameters: Sequence[Sequence[Tensor]]) -> None:
        """One optimiser for the stacked parameters, with the state that theirs have."""
        self._leaves = abreast.parameters
        self._optimizer = torch_specs.optimizer(self._first.options.optimizer, self._leaves)
        own = [training.stepping.optimizer for training in self.trainings]
        for place, leaf in enumerate(self._leaves):
            states = [o.state.get(p[place], {}) for o, p in zip(own, parameters, strict=True)]
            for name, value in states[0].items():
                several = isinstance(value, Tensor) and value.shape == parameters[0][place].shape
                self._optimizer.state[leaf][name] = (
                    torch.stack([s[name] for s in states])
                    if several and name != "step"
                    else value.clone()
                    if isinstance(value, Tensor)
                    else value
                )

    def _hand_out(self, parameters: Sequence[Sequence[Tensor]]) -> None:
        """Each start's parameters and optimiser state become views of the stacked ones."""
        for r, training in enumerate(self.trainings):
            theirs: Any = training.stepping.optimizer
            theirs._opt_called = True  # what schedules look for
            state = theirs.state
            for leaf, p in zip(self._leaves, parameters[r], strict=True):
                p.data = leaf.data[r]
                state[p] = {
                    name: value[r]
                    if isinstance(value, Tensor) and name != "step" and value.shape == leaf.shape
                    else value
                    for name, value in self._optimizer.state[leaf].items()
                }

    def _take_rates(self) -> None:
        """The learning rate and what else a schedule moves: the first start's is everyone's."""
        theirs = self._first.stepping.optimizer.param_groups
        for group, own in zip(self._optimizer.param_groups, theirs, strict=True):
            group.update({k: v for k, v in own.items() if k != "params"})


def _count(rows: Sequence[Tensor | None], training: Training) -> int:
    return len(training.train) if rows[0] is None else len(rows[0])


def reject_unsupported(trainings: Sequence[Training]) -> None:
    """Raise `CannotCaptureError` if these had better be trained in turn."""
    first = trainings[0]
    options = first.options
    reason = None
    if options.engine == "eager" or isinstance(first.stepping.optimizer, LBFGS):
        reason = "their steps are eager"
    elif processes.count() > 1:
        reason = "several processes share their batches"
    elif len({training.step_number for training in trainings}) > 1:
        reason = "they were interrupted at different steps"
    elif any(isinstance(t.stepping.schedule, ReduceLROnPlateau) for t in trainings):
        reason = "each has a learning rate of its own"
    elif options.engine == "auto" and options.batch_size > MOST_ROWS:
        reason = f"a batch has more than {MOST_ROWS} rows"
    elif any(training.stepping.capture_error is not None for training in trainings):
        reason = "they cannot be captured"
    elif len({id(p) for t in trainings for p in t.pair.unconstrained_parameters.values()}) < sum(
        len(t.pair.unconstrained_parameters) for t in trainings
    ):
        reason = "they share a module that is not theirs"
    if reason is not None:
        raise CannotCaptureError(reason)
