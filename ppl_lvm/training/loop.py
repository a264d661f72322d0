"""Training loop: batch, step, evaluation, checkpoint.

The rows of a step are a function of seed and step alone, and so is the number of steps in a call.
Checkpoints hold parameters, optimizer state and random states. So a resumed run continues bit for
bit at every level of the compiler.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm.compiler import CannotCaptureError, Recording
from ppl_lvm.core import distributed, interrupts
from ppl_lvm.core.console import Progress
from ppl_lvm.core.errors import DataFileError, NonFiniteError, is_numerical
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import generator_states, restore_generators
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows
from ppl_lvm.data.stores import MemoryStore
from ppl_lvm.programs.batch_versions import refuse_changes, versions
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.row_state import RowTables
from ppl_lvm.training import adaptive_schedule, checkpoint
from ppl_lvm.training.adaptive_schedule import AdaptiveSchedule
from ppl_lvm.training.batching import CallSchedule, EpochSampler
from ppl_lvm.training.evaluation import evaluate, log_evaluation
from ppl_lvm.training.identity import Identity
from ppl_lvm.training.non_finite import AT_FAULT, locate_non_finite, unlocated
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.preparation import PreparedPrograms
from ppl_lvm.training.step_runner import StepRunner
from ppl_lvm.training.trajectory import ParameterRecorder

logger = logging.getLogger("ppl_lvm")


class Training:
    """Training of one pair: `run()` takes all steps, `step()` takes one.

    Attributes:
        programs: the pair as its objective sees it.
        step_runner: takes the steps.
        history: "bound" has one value per step; "validation_step", "validation_bound" and
            "learning_rate" have one per evaluation. Bounds are in nats per row.
        step_number: steps taken so far.
        seconds: wall-clock time spent in steps, over all resumed parts.
        best_state, best_bound: parameters and validation bound of the best evaluation so far.
        stalled_evaluations: evaluations since the best one.
        path: of the checkpoint; None writes none.
        identity: of the run, stored with the checkpoint; see `ppl_lvm.training.identity`.
        say: receives one-line messages of the compiler.

    Args:
        pair: the programs, prepared by `prepare_pair`; trained in place.
        summed: sites summed out of the model.
    """

    def __init__(
        self,
        pair: ModelGuidePair,
        train: Data,
        held_out: Data | None,
        options: TrainingOptions,
        *,
        summed: frozenset[str] = frozenset(),
        path: Path | None = None,
    ) -> None:
        self.pair, self.train, self.held_out = pair, train, held_out
        self.options, self.path = options, path
        self.identity: Identity | None = None
        self.write_problem = ""  # of the last checkpoint
        self.step_number, self.seconds = 0, 0.0
        self.say: Callable[[str], None] = logger.warning
        self.history: dict[str, list[float]] = {
            "bound": [],
            "validation_step": [],
            "validation_bound": [],
            "learning_rate": [],
        }
        example = first_rows(train, options.batch_size)
        weights = train.weights
        self.row_tables = RowTables(pair.guide, len(train))
        with self.row_tables.shown(torch.arange(len(example[0]))):
            self.programs = PreparedPrograms(
                pair,
                example,
                len(train),
                summed=summed,
                weighted=options.kl_weight != 1.0 or options.kl_annealing != 0,
                check_support=options.engine != "eager",
                row_weights=None if weights is None else self._weights(weights[: len(example[0])]),
                total_weight=train.total_weight,
            )
            self.step_runner = StepRunner(self.programs, options, lambda line: self.say(line))
        self.iterates = ParameterRecorder(pair.unconstrained_parameters, options.foreseen_steps)
        self.adaptive = AdaptiveSchedule.of(self)
        if self.row_tables:
            self._restrict_to_eager_steps()
        self.sampler = EpochSampler(len(train), options.batch_size, options.seed, train.blocks)
        # Several processes set their seed and their share of the batch before every step.
        most = options.steps_per_call or options.validate_every
        most = most if distributed.world_size() == 1 else 1
        self._calls = CallSchedule(self.sampler, most, options.validate_every, options.num_steps)
        self._all_rows: tuple[Tensor, ...] | None = None
        self._versions: list[int] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_bound = -math.inf
        self.stalled_evaluations = 0

    @property
    def sign(self) -> float:
        """-1 where the objective's loss is minus the bound, 1 for an upper bound."""
        return self.step_runner.sign

    def _restrict_to_eager_steps(self) -> None:
        """Python reads and writes the tables of a guide, in this process."""
        if distributed.world_size() > 1:
            raise ValueError(
                "The guide has a table of rows, of which each process would have another. Train "
                "in one process, or use an amortized guide."
            )
        if self.options.engine != "eager":
            self.step_runner.disable_capture(
                "The guide reads and writes a table of rows at every step (LocalNormal does), "
                "which no recording of tensor operations can."
            )

    # Steps

    def step(self) -> float:
        """Take one step; returns its bound in nats per row."""
        with self._scope():
            return self._step()

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """The pair's parameters, without the warnings that an error will explain."""
        with self.pair.scope(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
            yield

    def _step(self) -> float:
        start = time.perf_counter()
        rows = self.sampler.rows(self.step_number)
        batch, total = self._batch(rows)
        self.begin_step(self.step_number)
        if distributed.world_size() > 1:
            distributed.seed_step(self.options.seed, self.step_number)
        generators = generator_states()
        try:
            # Pyro validates shapes and supports in the first epoch, afterwards at no cost.
            validates = self.step_number < self.sampler.steps_per_epoch
            with (
                pyro.validation_enabled(validates or self.step_runner.runs_programs),
                self.row_tables.shown(rows),
            ):
                bound = self.step_runner.step(batch, total, generators)
        except CannotCaptureError:
            raise
        except (ValueError, RuntimeError) as error:
            if is_numerical(error):
                restore_generators(generators)
                raise self._explain(error, batch, rows, generators) from error
            if distributed.world_size() > 1:  # another process has ended, before any update
                self.save()
            raise
        self._count_steps([bound], time.perf_counter() - start)
        return bound

    def begin_step(self, step: int) -> None:
        """Set the KL weight and the step number that step `step` reads."""
        self.programs.set_kl_weight(self._kl_weight(step))
        self.step_runner.policy.step = step

    def count_step(self, loss: float, rows: int, seconds: float) -> None:
        """Record a step: the objective's loss on so many rows, and its duration."""
        self._count_steps([self.sign * loss * self.programs.per_row(rows)], seconds)

    def record_step(self, batch: tuple[Tensor, ...]) -> Recording:
        """The recording of a step on a batch; nothing changes.

        Raises:
            CannotCaptureError: the step cannot be captured.
        """
        with self._scope(), pyro.validation_enabled(True):
            return self.step_runner.training_step.record(*batch)

    def all_rows(self) -> tuple[Tensor, ...]:
        """All training rows as one batch."""
        return self._batch(None)[0]

    def read(self, index: Tensor) -> tuple[Tensor, ...]:
        """Training rows as a step takes them, with their weights if they have some."""
        return self.rows_of(self.train, index)

    def _run_steps(self, count: int) -> float | None:
        """Take `count` steps in one call; None if that is impossible and nothing was done."""
        start = time.perf_counter()
        steps = range(self.step_number, self.step_number + count)
        self.step_runner.policy.step = self.step_number
        data, index = self._gather([r for r in map(self.sampler.rows, steps) if r is not None])
        weights = [self._kl_weight(step) for step in steps]
        records = self.iterates.state()
        pauses = self.iterates.pauses(self.step_number, count)
        bounds = self.step_runner.run_steps(data, index, weights, pauses)
        if bounds is None:
            self.iterates.restore(records)
            return None
        self._count_steps(bounds, time.perf_counter() - start)
        return bounds[-1]

    def _count_steps(self, bounds: list[float], seconds: float) -> None:
        self.history["bound"] += bounds
        self.step_number += len(bounds)
        self.step_runner.step_seconds = seconds / len(bounds)
        self.iterates.record(self.step_number)
        self.seconds += seconds

    def _explain(
        self,
        error: Exception,
        batch: tuple[Tensor, ...],
        rows: Tensor | None,
        generators: list[Tensor],
    ) -> Exception:
        """An error that names the fault of a failed step; saves the last good parameters."""
        # Programs that do not run have sites that show why.
        with suppress(ValueError, RuntimeError), pyro.validation_enabled(False):
            self.step_runner.gradient.leave_raw_gradient(batch)
        restore_generators(generators)
        reason = locate_non_finite(self.programs, batch, rows, self.train)
        restore_generators(generators)
        error = self.step_runner.gradient.failure or error
        if reason is None and not isinstance(error, NonFiniteError | RuntimeError):
            return error
        if self.step_runner.line_search is not None:
            self.step_runner.line_search.undo()
        reason = reason or unlocated(error)
        place = "The last checkpoint before is kept"  # better than parameters at fault
        if not (reason.startswith(AT_FAULT) and self.path is not None and self.path.exists()):
            place = f"The parameters of step {self.step_number} are kept"
            self.save()
        place += "." if self.path is None else f" in {self.path}."
        return NonFiniteError(f"Step {self.step_number + 1}: {reason} {place}")

    def _kl_weight(self, step: int) -> float:
        annealing = self.options.kl_annealing
        return self.options.kl_weight * (min(1.0, step / annealing) if annealing else 1)

    def _batch(self, rows: Tensor | None) -> tuple[tuple[Tensor, ...], int]:
        """This process's part of a batch, and the number of rows of the whole batch."""
        if rows is not None:
            return self.rows_of(self.train, distributed.local_rows(rows)), len(rows)
        if self._all_rows is None:
            local = distributed.local_rows(torch.arange(len(self.train)))
            self._all_rows = self.rows_of(self.train, local)
            self._versions = versions(self._all_rows)
        refuse_changes(self._all_rows, self._versions, f"Step {self.step_number}")
        return self._all_rows, len(self.train)

    def rows_of(self, data: Data, index: Tensor) -> tuple[Tensor, ...]:
        """Rows as the prepared programs take them: with their weights, if they have some."""
        if data.weights is None:
            return data.batch(index)
        return (*data.batch(index), self._weights(data.weights[index]))

    @staticmethod
    def _weights(weights: Tensor) -> Tensor:
        return weights.to(torch.get_default_dtype())

    def _gather(self, rows: list[Tensor]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Tensors, and the row numbers (steps, B) that steps see; None: each sees all."""
        if not rows:
            return self._batch(None)[0], None
        if isinstance(self.train.store, MemoryStore):
            weights = self.train.weights
            extra = () if weights is None else (self._weights(weights),)
            return (*self.train.tensors, *extra), torch.stack(rows)
        index = torch.stack(rows)
        return self.rows_of(self.train, index.reshape(-1)), torch.arange(index.numel()).view(
            index.shape
        )

    # Evaluation

    def validate(self) -> bool:
        """Evaluate on the held-out rows, and log the evaluation; True if training goes on."""
        continues = self._validate()
        log_evaluation(self)
        return continues

    def _validate(self) -> bool:
        self.history["validation_step"].append(float(self.step_number))
        learning_rate = self.step_runner.optimizer.param_groups[0]["lr"]
        self.history["learning_rate"].append(float(learning_rate))
        if self.held_out is None:
            return True
        first = distributed.rank() == 0
        bound = distributed.broadcast_from_first(
            self._validation_bound(self.held_out) if first else None
        )
        self.history["validation_bound"].append(bound)
        schedule = self.step_runner.schedule
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.sign * bound)
        if -self.sign * bound > self.best_bound:
            self.best_bound, self.stalled_evaluations = -self.sign * bound, 0
            if self.options.patience is not None:
                self.best_state = self.pair.state()
        else:
            self.stalled_evaluations += 1
        return self.continues

    def _validation_bound(self, held_out: Data) -> float:
        """The bound on held-out rows; NaN where it fails and no later step depends on it."""
        try:
            return evaluate(self, held_out)[0]
        except Exception as error:
            scheduled = isinstance(self.step_runner.schedule, ReduceLROnPlateau)
            if scheduled or self.options.patience is not None:
                raise
            self.say(f"No validation bound at step {self.step_number}: {reason_of(error)}")
            return math.nan

    @property
    def continues(self) -> bool:
        """True unless no more is to be gained, or validation has stopped improving."""
        if self.adaptive is not None and self.adaptive.finished:
            return False
        patience = self.options.patience
        return patience is None or self.stalled_evaluations <= patience

    # The loop

    def run(self, progress: Progress) -> None:
        """Take steps to the end, or until no more is to be gained."""
        self.say = progress.say
        saved = time.monotonic()
        continues = self.continues
        savable = self.path is not None or distributed.world_size() > 1
        with self._scope(), interrupts.deferred(savable) as interrupted:
            while continues and self.step_number < self.options.num_steps:
                bound = self._advance_or_save()
                at_end = self.step_number == self.options.num_steps
                if at_end or self.step_number % self.options.validate_every == 0:
                    continues = self.validate()
                if self.adaptive is not None and self.step_number in self.adaptive.events:
                    adaptive_schedule.advance([self.adaptive])
                    continues = self.continues
                progress.advance(self.step_number, bound, self.history["validation_bound"][-1:])
                due = time.monotonic() - saved >= self.options.checkpoint_seconds
                if due or at_end or not continues or interrupted:
                    self.save()
                    saved = time.monotonic()
                if interrupted:
                    interrupted.end(f"step {self.step_number}")
        self.finish()

    def finish(self) -> None:
        """Set the parameters to the best ones that are known."""
        if self.best_state:
            self.pair.load_state(self.best_state)
        if self.adaptive is not None:
            self.adaptive.finish()

    def save(self) -> None:
        """Write a checkpoint if there is a path for it; of several processes the first does."""
        if self.path is not None and distributed.rank() == 0:
            checkpoint.save(self, self.path)

    def _advance_or_save(self) -> float:
        """Steps of one call; where the rows cannot be read, the steps before are saved."""
        try:
            return self._advance()
        except DataFileError as error:
            if self.path is None:
                raise
            self.save()
            place = f"The fit is saved at step {self.step_number}, in {self.path}; resume=True"
            raise DataFileError(f"{error} {place} continues it.") from error

    def _advance(self) -> float:
        count = self._calls(self.step_number)
        if self.options.steps_per_call is None:
            in_memory = isinstance(self.train.store, MemoryStore)  # else a call reads its rows
            count = min(count, self.step_runner.affordable_steps if in_memory else 1)
        if self.adaptive is not None:
            count = min(count, self.adaptive.next_event - self.step_number)
        bound = self._run_steps(count) if count > 1 else None
        return self._step() if bound is None else bound
