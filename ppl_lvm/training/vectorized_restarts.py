"""Vectorized restarts: R trainings in one captured graph.

The cost of a small step is the cost of calling its operations, which R restarts in one graph pay
once. Each restart has its own rows, random numbers and history. Its parameters are
views of the stacked parameters, so that its result equals that of a separate run up to rounding.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm.compiler.optim.flat import FlatOptimizer
from ppl_lvm.compiler.vectorize_restarts import VectorizedRecording, VectorizedStep
from ppl_lvm.core import distributed, interrupts, torch_specs
from ppl_lvm.core.console import Progress
from ppl_lvm.core.dynamo import without_dynamo
from ppl_lvm.core.errors import CannotCaptureError, is_numerical
from ppl_lvm.training import adaptive_schedule, checkpoint
from ppl_lvm.training.loop import Training

MOST_ROWS = 1024  # of a batch: with more, arithmetic dominates and separate steps are faster


class VectorizedRestarts:
    """R trainings at the same step, trained in place.

    Attributes:
        generators: the random generator of each restart.
        step_number: steps taken so far.

    Args:
        trainings: with the same programs and options except for the seed.
        states: torch's random state of each.
        step_number: steps taken so far.
        path: of the checkpoint of all; None writes none.

    Raises:
        CannotCaptureError: the trainings cannot share a graph; the message has the reason.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        states: Sequence[Tensor],
        step_number: int = 0,
        path: Path | None = None,
    ) -> None:
        self.trainings = list(trainings)
        reject_unsupported(self.trainings)
        self.generators = [torch.Generator() for _ in trainings]
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        self.step_number, self.path = step_number, path
        self._steps: dict[int, VectorizedStep] = {}
        self._leaves: list[Tensor] = []
        self._optimizer: Any = None
        self._flat = FlatOptimizer()
        self._build_step([t.sampler.rows(step_number) for t in trainings])

    @property
    def _first(self) -> Training:
        return self.trainings[0]

    def run(self, progress: Progress) -> None:
        """Step all to the end, or until validation has stopped improving for each."""
        with interrupts.deferred(self.path is not None) as interrupted:
            self._run(progress, interrupted)
        for training in self.trainings:
            training.finish()

    def _run(self, progress: Progress, interrupted: interrupts.Requests) -> None:
        options, saved = self._first.options, time.monotonic()
        active = [training.continues for training in self.trainings]
        while any(active) and self.step_number < options.num_steps:
            self._step(active)
            step = self.step_number
            at_end = step == options.num_steps
            evaluates = at_end or step % options.validate_every == 0
            due = time.monotonic() - saved >= options.checkpoint_seconds
            for r, training in enumerate(self.trainings):
                if active[r] and evaluates:
                    active[r] = training.validate()
            schedules = [t.adaptive for t in self.trainings if t.adaptive is not None]
            if schedules and step in schedules[0].events:
                adaptive_schedule.advance(schedules)
                active = [training.continues for training in self.trainings]
            if due or at_end or interrupted or not any(active):
                self.save()
                saved = time.monotonic()
            best = max(self.trainings, key=lambda t: -t.sign * t.history["bound"][-1])
            held_out = best.history["validation_bound"][-1:]
            progress.advance(step, best.history["bound"][-1], held_out)
            if interrupted:
                interrupted.end(f"step {step}")

    def save(self) -> None:
        """Write one checkpoint of all restarts, if there is a path for it."""
        if (path := self.path) is not None:
            parts = (self.trainings, self.generators, self.step_number, path)
            checkpoint.save_together(*parts)

    def separate(self) -> None:
        """Give each restart its own optimizer state, to be trained separately from here on."""
        for training in self.trainings:
            optimizer = training.step_runner.optimizer
            with without_dynamo(Optimizer.state_dict, Optimizer.load_state_dict):
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def _step(self, active: Sequence[bool]) -> None:
        start = time.perf_counter()
        number = self.step_number
        rows = [training.sampler.rows(number) for training in self.trainings]
        for training in self.trainings:
            training.begin_step(number)
        count = _num_rows(rows, self._first)
        step = self._steps.get(count) or self._build_step(rows)
        states = [generator.get_state() for generator in self.generators]
        self._copy_rates(self._first.step_runner.optimizer, self._optimizer)
        try:
            losses = step(self._batch(rows))
        except RuntimeError as error:
            if not is_numerical(error):
                raise
            losses = None  # before any update
        if losses is None:
            self._raise_non_finite(states)
        assert losses is not None
        loss, _ = losses
        self.step_number += 1
        seconds = (time.perf_counter() - start) / len(self.trainings)
        for training, value, is_active in zip(self.trainings, loss.tolist(), active, strict=True):
            if is_active:
                training.count_step(value, count, seconds)
            self._copy_rates(self._optimizer, training.step_runner.optimizer)
            training.step_runner.advance_schedule()

    def _batch(self, rows: Sequence[Tensor | None]) -> list[Tensor]:
        if rows[0] is None:
            return list(self._first.all_rows())
        batches = [self._first.read(r) for r in rows if r is not None]
        return [torch.stack(column) for column in zip(*batches, strict=True)]

    def _raise_non_finite(self, states: Sequence[Tensor]) -> None:
        """Repeat a failed step of each restart separately, which raises the error."""
        for training, state in zip(self.trainings, states, strict=True):
            torch.set_rng_state(state)
            training.step()
        raise ArithmeticError("a restart is not finite in the shared graph, but is separately")

    # The shared graph

    def _build_step(self, rows: Sequence[Tensor | None]) -> VectorizedStep:
        recordings, batches = [], []
        for training, index in zip(self.trainings, rows, strict=True):
            batch = training.all_rows() if index is None else training.read(index)
            recordings.append(training.record_step(batch))
            batches.append(list(batch))
        parameters = [t.step_runner.training_step.gradient.parameters for t in self.trainings]
        recording = VectorizedRecording(
            recordings,
            parameters,
            batches,
            rows[0] is None,
            [t.programs.kl_weight for t in self.trainings],
            self.generators,
        )
        if self._leaves:
            recording.parameters = self._leaves
        else:
            self._stack(recording, parameters)
        compiled = self._first.options.engine == "compiled"
        step = VectorizedStep(recording, self._batch(rows), self._optimizer, self._flat, compiled)
        self._share_views(parameters)
        self._steps[_num_rows(rows, self._first)] = step
        return step

    def _stack(
        self, recording: VectorizedRecording, parameters: Sequence[Sequence[Tensor]]
    ) -> None:
        """Make one optimizer for the stacked parameters, with the restarts' stacked states."""
        self._leaves = recording.parameters
        self._optimizer = torch_specs.optimizer(self._first.options.optimizer, self._leaves)
        optimizers = [training.step_runner.optimizer for training in self.trainings]
        for place, leaf in enumerate(self._leaves):
            states = [
                optimizer.state.get(p[place], {})
                for optimizer, p in zip(optimizers, parameters, strict=True)
            ]
            for name, value in states[0].items():
                if not isinstance(value, Tensor):
                    stacked = value
                elif value.shape == parameters[0][place].shape and name != "step":
                    stacked = torch.stack([state[name] for state in states])
                else:
                    stacked = value.clone()
                self._optimizer.state[leaf][name] = stacked

    def _share_views(self, parameters: Sequence[Sequence[Tensor]]) -> None:
        """Make each restart's parameters and optimizer state views of the stacked ones."""
        for r, training in enumerate(self.trainings):
            optimizer: Any = training.step_runner.optimizer
            optimizer._opt_called = True  # schedules test this attribute
            for leaf, p in zip(self._leaves, parameters[r], strict=True):
                p.data = leaf.data[r]
                optimizer.state[p] = {
                    name: value[r]
                    if isinstance(value, Tensor) and name != "step" and value.shape == leaf.shape
                    else value
                    for name, value in self._optimizer.state[leaf].items()
                }

    @staticmethod
    def _copy_rates(source: Optimizer, target: Optimizer) -> None:
        """Copy learning rates and other scheduled values, which the optimizer may change too."""
        for group, other in zip(target.param_groups, source.param_groups, strict=True):
            group.update({k: v for k, v in other.items() if k != "params"})


def _num_rows(rows: Sequence[Tensor | None], training: Training) -> int:
    return len(training.train) if rows[0] is None else len(rows[0])


def reject_unsupported(trainings: Sequence[Training]) -> None:
    """Raise `CannotCaptureError` where separate trainings are required or faster."""
    first = trainings[0]
    options = first.options
    leaves = [p for t in trainings for p in t.pair.unconstrained_parameters.values()]
    reason = None
    if options.engine == "eager" or isinstance(first.step_runner.optimizer, LBFGS):
        reason = "their steps are eager"
    elif distributed.world_size() > 1:
        reason = "several processes share their batches"
    elif first.train.blocks is not None:
        reason = "each reads the files in another order"
    elif any(isinstance(t.step_runner.schedule, ReduceLROnPlateau) for t in trainings):
        reason = "each has another learning rate"
    elif options.engine == "auto" and options.batch_size > MOST_ROWS:
        reason = f"a batch has more than {MOST_ROWS} rows"
    elif any(training.step_runner.capture_error is not None for training in trainings):
        reason = "they cannot be captured"
    elif len({id(leaf) for leaf in leaves}) < len(leaves):
        reason = "they share a module outside the programs"
    if reason is not None:
        raise CannotCaptureError(reason)
