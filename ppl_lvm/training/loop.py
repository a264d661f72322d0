"""The training loop: batch -> step -> evaluation, with its history.

Which rows a step sees is a function of the seed and the step alone, and so is how many steps one
call of the engine takes. With the parameters, the optimiser's state and the random generators'
state in a checkpoint, a resumed run continues bit for bit, at every level of the engine.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm.compiler import CannotCaptureError, NonFiniteStepError, Recording
from ppl_lvm.core import distributed as processes
from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import generator_states, preserve_rng, restore_generators
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows
from ppl_lvm.data.stores import MemoryStore
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.row_state import RowTables
from ppl_lvm.training import checkpoint as resume
from ppl_lvm.training.batching import CallSchedule, EpochSampler
from ppl_lvm.training.gradient_step import GradientStep
from ppl_lvm.training.non_finite import NonFiniteError, locate_non_finite
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.trajectory import ParameterRecorder

logger = logging.getLogger("ppl_lvm")


class Training:
    """One run of the loop over `pair`; `run()` drives it, `step()` takes one step.

    Attributes:
        pair: the programs being trained.
        stepping: how a step is taken.
        history: lists that grow with the run. "bound" has one value a step; "validation_step",
            "validation_bound" and "learning_rate" one an evaluation. Bounds are nats per row.
        seconds: wall-clock time spent in steps, over all resumed parts.
        say: receives one-line messages of the engine.
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
        self.step_number = 0
        self.seconds = 0.0
        self.say: Callable[[str], None] = logger.warning
        self.history: dict[str, list[float]] = {
            "bound": [],
            "validation_step": [],
            "validation_bound": [],
            "learning_rate": [],
        }
        first = first_rows(train, options.batch_size)
        self.tables = RowTables(pair.guide, len(train))
        with self.tables.shown(torch.arange(len(first[0]))):
            self.stepping = GradientStep(
                pair, len(train), first, options, summed, lambda line: self.say(line)
            )
        self.iterates = ParameterRecorder(pair.unconstrained_parameters, options.num_steps)
        if self.tables:
            self._keep_to_this_process()
        self.order = EpochSampler(len(train), options.batch_size, options.seed)
        # Several processes set their seed and their share of the batch before every step.
        most = options.steps_per_call if processes.count() == 1 else 1
        self._calls = CallSchedule(self.order, most, options.validate_every, options.num_steps)
        self._whole: tuple[Tensor, ...] | None = None
        self.best_state: dict[str, Tensor] = {}
        self.best_bound = -math.inf
        self.waited = 0

    @property
    def sign(self) -> float:
        """-1 where the objective's loss is minus the bound, 1 for an upper bound."""
        return self.stepping.sign

    def _keep_to_this_process(self) -> None:
        """What a guide keeps for every row is read and written by Python, here."""
        if processes.count() > 1:
            raise ValueError(
                "The guide keeps numbers for every row in a table, which several processes would "
                "each have their own of. Train in one process, or use an amortised guide."
            )
        if self.options.engine != "eager":
            self.stepping.go_eagerly(
                "The guide reads and writes a table of rows at every step (LocalNormal does), "
                "which no recording of tensor operations can."
            )

    # Steps

    def step(self) -> float:
        """Take one step; returns its bound in nats per row."""
        with self._ready():
            return self._step()

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The pair's own parameters, and no warning where an error will say more."""
        with self.pair.scope(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
            yield

    def _step(self) -> float:
        begun = time.perf_counter()
        rows = self.order.rows(self.step_number)
        batch, total = self._batch(rows)
        self.begin(self.step_number)
        if processes.count() > 1:
            processes.seed_step(self.options.seed, self.step_number)
        before = generator_states()
        try:
            # Pyro's own checks (shapes, supports) on everything once, then they cost nothing.
            first = self.step_number < self.order.steps_per_epoch
            with (
                pyro.validation_enabled(first or self.stepping.learning),
                self.tables.shown(rows),
            ):
                bound = self.stepping.step(batch, total, before)
        except CannotCaptureError:
            raise
        except (ValueError, NonFiniteStepError) as error:
            restore_generators(before)
            raise self._explained(error, batch, rows, before) from error
        except RuntimeError:
            if processes.count() > 1:  # another one has ended; no update has been made
                self.save()
            raise
        self._count([bound], time.perf_counter() - begun)
        return bound

    # Steps taken by others, of several trainings together

    def begin(self, step: int) -> None:
        """Set what step `step` reads."""
        self.stepping.set_kl_weight(self._kl_weight(step))
        self.stepping.plan.step = step

    def end(self, loss: float, rows: int, seconds: float) -> None:
        """Count a step that has been taken: the objective's loss on so many rows."""
        self._count([self.sign * loss * self.stepping.programs(rows)[2]], seconds)

    def record(self, batch: tuple[Tensor, ...]) -> Recording:
        """The recording of a step on such a batch; nothing changes.

        Raises:
            CannotCaptureError: it cannot be captured.
        """
        with self._ready(), pyro.validation_enabled(True):
            return self.stepping.whole.record(*batch)

    def whole_batch(self) -> tuple[Tensor, ...]:
        """All rows."""
        return self._batch(None)[0]

    def _many(self, count: int) -> float | None:
        """Take `count` steps in one call; None if that cannot be had and nothing was done."""
        begun = time.perf_counter()
        steps = range(self.step_number, self.step_number + count)
        rows = [self.order.rows(step) for step in steps]
        self.stepping.plan.step = self.step_number
        data, index = self._gather([r for r in rows if r is not None])
        bounds = self.stepping.run_steps(data, index, [self._kl_weight(step) for step in steps])
        if bounds is None:
            return None
        self._count(bounds, time.perf_counter() - begun)
        return bounds[-1]

    def _count(self, bounds: list[float], seconds: float) -> None:
        self.history["bound"] += bounds
        self.step_number += len(bounds)
        self.iterates.keep(self.step_number)
        self.seconds += seconds

    def _explained(
        self, error: Exception, batch: tuple[Tensor, ...], rows: Tensor | None, before: list[Tensor]
    ) -> Exception:
        """The error that says what is at fault, if that is found; what was good is saved."""
        programs = self.stepping.programs(len(batch[0]))
        try:
            with pyro.validation_enabled(False):
                self.stepping.look(batch)
        except ValueError:
            pass  # it cannot even be run: its sites will say why
        restore_generators(before)
        reason = locate_non_finite(self.pair, programs, batch, rows, self.train)
        restore_generators(before)
        if reason is None and not isinstance(error, NonFiniteStepError):
            return error
        self.stepping.undo()
        self.save()
        return NonFiniteError(
            f"Step {self.step_number + 1}: {reason or 'the loss or a gradient is not finite.'} "
            f"The parameters of step {self.step_number} are kept"
            + (f" in {self.path}." if self.path is not None else ".")
        )

    def _kl_weight(self, step: int) -> float:
        annealing = self.options.kl_annealing
        return self.options.kl_weight * (min(1.0, step / annealing) if annealing else 1)

    def _batch(self, rows: Tensor | None) -> tuple[tuple[Tensor, ...], int]:
        """This process's part of a batch, and how many rows the batch has."""
        if rows is not None:
            return self.train.batch(processes.mine(rows)), len(rows)
        if self._whole is None:
            self._whole = self.train.batch(processes.mine(torch.arange(len(self.train))))
        return self._whole, len(self.train)

    def _gather(self, rows: list[Tensor]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Tensors, and the rows (steps, B) of them that steps see; None: each sees all."""
        if not rows:
            return self._batch(None)[0], None
        if isinstance(self.train.store, MemoryStore):
            return self.train.tensors, torch.stack(rows)
        index = torch.stack(rows)
        return self.train.batch(index.reshape(-1)), torch.arange(index.numel()).view(index.shape)

    # Evaluation

    def evaluate(self, data: Data, *, repeats: int = 1) -> tuple[float, float]:
        """The bound on `data`, nats per row, and its Monte-Carlo error (NaN for one repeat).

        At full KL weight, in evaluation mode, with a seed of its own: two evaluations of the same
        parameters are equal. Global latents count as in training: their terms are divided by the
        training rows.
        """
        self.stepping.set_kl_weight(self.options.kl_weight)
        modules = [module for _, module in self.pair.modules()]
        training = [module.training for module in modules]
        try:
            with torch.no_grad(), preserve_rng(), self.pair.scope():
                torch.manual_seed(self.options.seed)
                self.pair.eval_mode()
                values = [self._evaluate_once(data) for _ in range(repeats)]
        finally:
            for module, mode in zip(modules, training, strict=True):
                module.train(mode)
        error = np.std(values, ddof=1) / math.sqrt(repeats) if repeats > 1 else math.nan
        return float(np.mean(values)), float(error)

    def _evaluate_once(self, data: Data) -> float:
        total = 0.0
        for rows in torch.arange(len(data)).split(self.options.batch_size):
            batch = data.batch(rows)
            model, guide, per_row = self.stepping.programs(len(rows))
            loss = self.pair.objective.loss(model, guide, *batch) * per_row
            total += self.sign * float(loss) * len(rows) / len(data)
        return total

    def validate(self) -> bool:
        """Evaluate; whether to go on."""
        self.history["validation_step"].append(self.step_number)
        self.history["learning_rate"].append(float(self.stepping.optimizer.param_groups[0]["lr"]))
        if self.held_out is None:
            return True
        first = processes.rank() == 0
        bound = processes.from_first(self.evaluate(self.held_out)[0] if first else None)
        self.history["validation_bound"].append(bound)
        schedule = self.stepping.schedule
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.sign * bound)
        if -self.sign * bound > self.best_bound:
            self.best_bound, self.waited = -self.sign * bound, 0
            if self.options.patience is not None:
                self.best_state = self.pair.state()
        else:
            self.waited += 1
        return self.going

    # The loop

    def run(self, progress: Progress) -> None:
        """Step to the end, or until validation has stopped improving."""
        self.say = progress.say
        saved = time.monotonic()
        going = self.going
        with self._ready(), processes.told_to_end() as told:
            while going and self.step_number < self.options.num_steps:
                bound = self._advance()
                at_end = self.step_number == self.options.num_steps
                if at_end or self.step_number % self.options.validate_every == 0:
                    going = self.validate()
                progress.advance(self.step_number, bound, self.history["validation_bound"][-1:])
                due = time.monotonic() - saved >= self.options.checkpoint_seconds
                if due or at_end or not going or told():
                    self.save()
                    saved = time.monotonic()
                if told():
                    raise SystemExit(f"Ended from outside after step {self.step_number}.")
        self.finish()

    def finish(self) -> None:
        """Go back to the best parameters, if a run that may stop early has found any."""
        if self.best_state:
            self.pair.load_state(self.best_state)

    def save(self) -> None:
        """Write a checkpoint, if there is a place for it; of several processes the first does."""
        if self.path is not None and processes.rank() == 0:
            resume.save(self, self.path)

    def _advance(self) -> float:
        count = self._calls(self.step_number)
        bound = self._many(count) if count > 1 else None
        return self._step() if bound is None else bound

    @property
    def going(self) -> bool:
        """Whether validation has not stopped improving."""
        return self.options.patience is None or self.waited <= self.options.patience
