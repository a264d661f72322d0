"""Restarts: train a pair from several seeds, choose the best.

Restart r has seed `options.seed + r`. The chosen restart has the best bound on the held-out rows
(on the training rows where none are held out) among those that the model does not call degenerate.
A restart whose loss became NaN or infinite is recorded with its reason, and the others go on.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from ppl_lvm.compiler import CannotCaptureError
from ppl_lvm.core import distributed
from ppl_lvm.core.console import Progress
from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.types import Program
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows, initialization_rows, sample_rows
from ppl_lvm.posterior import predict
from ppl_lvm.programs.row_plates import joint_sites, row_plates
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.training import checkpoint
from ppl_lvm.training.arrival import arrival
from ppl_lvm.training.attempts import Attempts
from ppl_lvm.training.evaluation import evaluate
from ppl_lvm.training.identity import Identity
from ppl_lvm.training.loop import Training
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.preparation import make_guide, prepare_pair, warn_or_raise
from ppl_lvm.training.trajectory import CLUSTERED_ROWS, Trajectory, clusterings, last_bounds
from ppl_lvm.training.vectorized_restarts import VectorizedRestarts, reject_unsupported

GUIDE_ROWS = 1024  # a guide's builder sees: enough for the scale of the columns
EVALUATION_ROWS = 10_000
EVALUATIONS = 8  # of the final bound: enough for its Monte-Carlo error
MORE_EVALUATIONS = 64  # where the error is larger: global latents are one draw for all rows
SMALL_ERROR = 0.01  # nats per row

CHECKPOINT = "checkpoint.safetensors"  # in the run directory

Entry = dict[str, Any]  # of one restart, as run.json records it


@dataclass(frozen=True)
class RestartResults:
    """Trained restarts, in the order of their seeds.

    Attributes:
        trainings: the training of each restart.
        entries: the record of each restart: seed, bounds, steps, seconds, reason for rejection.
        trajectories: the diagnostics' data of each restart.
        best_index: index of the chosen restart.
    """

    trainings: list[Training]
    entries: list[Entry]
    trajectories: list[Trajectory]
    best_index: int

    @property
    def best(self) -> Training:
        """The chosen restart."""
        return self.trainings[self.best_index]

    @property
    def best_entry(self) -> Entry:
        """The record of the chosen restart."""
        return self.entries[self.best_index]

    def record(self) -> list[Entry]:
        """The entries, each with "chosen"."""
        return [{**e, "chosen": e is self.best_entry} for e in self.entries]


class RestartRunner:
    """Trains R restarts: in one graph where possible, otherwise one after the other.

    Args:
        model, guide: build the programs of each restart.
        objective: see `prepare_pair`.
        options: of the training loop; their seed is that of restart 0.
        num_restarts: R.
    """

    def __init__(
        self,
        model: ModelFactory,
        guide: GuideFactory,
        objective: str | ELBO | None,
        train: Data,
        held_out: Data | None,
        options: TrainingOptions,
        *,
        num_restarts: int,
        show_progress: bool,
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.train, self.held_out, self.options = train, held_out, options
        self.num_restarts, self.show_progress = num_restarts, show_progress
        self.attempt = Attempts()
        self.identity: Identity | None = None
        self._checked = False
        self._failures: dict[int, NonFiniteError] = {}  # by seed

    def prepare(self, number: int) -> Training:
        """Restart `number` before its first step; sets the random state that belongs to it.

        The pair of restart 0 is checked before anything else is done with it.

        Raises:
            ValueError: a faulty pair.
        """
        options = replace(self.options, seed=self.options.seed + number)
        pyro.set_rng_seed(options.seed)
        rows = initialization_rows(self.train)
        example = first_rows(self.train, options.batch_size)
        with pyro.get_param_store().scope():  # builders may run programs
            model = self.model.make(rows, restart=number)
        guide = make_guide(self.guide, model, self._guide_rows(model), restart=number)
        if number == 0 and not self._checked:
            self._checked = True
            warn_or_raise(model, guide, *example, num_rows=len(self.train))
        pair, summed = prepare_pair(model, guide, self.objective, example, self.train)
        if self.held_out is not None:
            held_out = first_rows(self.held_out, options.batch_size)
            predict.require_posterior(pair, *held_out, what="validation")
        return Training(pair, self.train, self.held_out, options, summed=summed)

    def _guide_rows(self, model: Program) -> tuple[Tensor, ...]:
        """Rows for the guide's builder: all of them where a latent holds all rows together."""
        rows = first_rows(self.train, GUIDE_ROWS)
        if len(rows[0]) < len(self.train):
            plates = row_plates(model, batch=rows).names
            if joint_sites(model, plates, rows):
                return first_rows(self.train, self.options.batch_size)
        return rows

    def run(
        self,
        first: Training,
        directory: Path | None,
        attempt: Attempts,
        identity: Identity | None = None,
    ) -> RestartResults:
        """Train every restart and choose the best.

        Args:
            first: restart 0, as `prepare(0)` returned it.
            directory: for the checkpoints; None writes none.
            attempt: evaluates the trained restarts.
            identity: of the run, compared with that of its checkpoints.

        Raises:
            NonFiniteError: the loss of every restart became NaN or infinite.
        """
        self.attempt, self.identity = attempt, identity
        if self.num_restarts == 1:
            trainings = [first]
            entries = [self._train(first, 0, directory)]
        else:
            trainings, entries = self._train_several(first, directory)
        if len(self._failures) == self.num_restarts:
            raise next(iter(self._failures.values()))
        candidates = [i for i, e in enumerate(entries) if e["degenerate"] is None]
        return RestartResults(
            trainings,
            entries,
            [self._trajectory(training) for training in trainings],
            max(
                candidates or range(len(entries)),
                key=lambda i: self._score(trainings[i], entries[i]),
            ),
        )

    def _train_several(
        self, first: Training, directory: Path | None
    ) -> tuple[list[Training], list[Entry]]:
        """All restarts, together if they can be captured in one graph, else in turn."""
        try:
            reject_unsupported([first])
        except CannotCaptureError:  # one after the other, in memory too
            return self._train_in_turn(first, directory)
        trainings, entries, states = [], [], []
        for number in range(self.num_restarts):
            training = first if number == 0 else self.prepare(number)
            training.identity = self.identity
            trainings.append(training)
            states.append(random_state())
        path, step = None if directory is None else directory / CHECKPOINT, 0
        if path is not None and path.exists():
            step, states = checkpoint.load_together(trainings, path)
        try:
            together, finished = self._train_together(
                trainings, [state["random/torch"] for state in states], step, path
            )
        except (NonFiniteError, ArithmeticError):  # the steps of the others are in the graph
            return self._train_in_turn(self.prepare(0), directory)
        for number, (training, state) in enumerate(zip(trainings, states, strict=True)):
            set_random_state(state)
            if together is not None:
                torch.set_rng_state(together.generators[number].get_state())
            # A run that was interrupted after the last step together has taken more steps alone.
            entries.append(
                self._evaluate(training) if finished else self._train(training, number, directory)
            )
        return trainings, entries

    def _train_in_turn(
        self, first: Training, directory: Path | None
    ) -> tuple[list[Training], list[Entry]]:
        """One restart after the other."""
        trainings, entries = [], []
        for number in range(self.num_restarts):
            training = first if number == 0 else self.prepare(number)
            trainings.append(training)
            entries.append(self._train(training, number, directory))
        return trainings, entries

    def _train_together(
        self,
        trainings: list[Training],
        states: list[torch.Tensor],
        step: int,
        path: Path | None,
    ) -> tuple[VectorizedRestarts | None, bool]:
        """All restarts in one graph from `step` on, as far as they can be captured: to the end?"""
        title = f"{self.num_restarts} restarts together"
        together: VectorizedRestarts | None = None
        with self._progress(step, title) as progress:
            try:
                together = VectorizedRestarts(trainings, states, step, path)
                together.run(progress)
            except CannotCaptureError as refusal:
                progress.say(f"One restart after the other: {refusal}.")
                if together is not None:
                    together.separate()
                return together, False
            except (NonFiniteError, ArithmeticError) as error:
                progress.say(f"One restart after the other, from the beginning: {error}")
                raise
        return together, True

    def _resume(self, training: Training, number: int, directory: Path | None) -> None:
        """Set a restart's checkpoint path, and continue from the checkpoint there."""
        single = self.num_restarts == 1
        if directory is not None:
            training.path = directory / (CHECKPOINT if single else f"restarts/{number}.safetensors")
        if self.identity is not None:
            training.identity = {**self.identity, "restart": number}
        if training.path is not None and training.path.exists():
            checkpoint.load(training, training.path)

    def _progress(self, done: int, title: str) -> Progress:
        shown = self.show_progress and distributed.rank() == 0
        steps = self.options.num_steps
        return Progress(steps, done=done, title=title, shown=shown)

    def _train(self, training: Training, number: int, directory: Path | None) -> Entry:
        self._resume(training, number, directory)
        title = "" if self.num_restarts == 1 else f"restart {number + 1} of {self.num_restarts}"
        with self._progress(training.step_number, title) as progress:
            try:
                training.run(progress)
            except NonFiniteError as error:
                if self.num_restarts == 1:
                    raise
                progress.say(f"Restart {number + 1} ended: {error}")
                self._failures[training.options.seed] = error
                return self._entry(training, f"it ended: {error}")
        return self._evaluate(training)

    def _evaluate(self, training: Training) -> Entry:
        """The record of a trained restart."""
        pair, options = training.pair, training.options
        pair.eval_mode()
        rows = initialization_rows(self.train)
        evaluation_rows = sample_rows(self.train, EVALUATION_ROWS, options.seed)
        degenerate = getattr(pair.model, "degenerate", None)
        reason = None
        if degenerate is not None:
            with pair.scope():
                reason = self.attempt("degenerate", lambda: degenerate(*rows))
        bound, error = self._bound(training, "bound", evaluation_rows)
        held_out = held_out_error = None
        if self.held_out is not None:
            held_out, held_out_error = self._bound(training, "held-out bound", self.held_out)
        return self._entry(training, reason, (bound, error), (held_out, held_out_error))

    @staticmethod
    def _entry(
        training: Training,
        degenerate: str | None,
        bound: tuple[float | None, float | None] = (None, None),
        held_out: tuple[float | None, float | None] = (None, None),
    ) -> Entry:
        return {
            "seed": training.options.seed,
            "bound": bound[0],
            "bound_monte_carlo_error": bound[1],
            "held_out": held_out[0],
            "held_out_monte_carlo_error": held_out[1],
            "steps": training.step_number,
            "seconds": training.seconds,
            "engine": training.step_runner.level,
            "degenerate": degenerate,
            **arrival(training).record(),
        }

    def _bound(
        self, training: Training, name: str, data: Data
    ) -> tuple[float, float] | tuple[None, None]:
        """A bound and its Monte-Carlo error; None where it cannot be computed."""
        bounds = self.attempt(name, lambda: evaluate(training, data, repeats=EVALUATIONS))
        if bounds is None:
            return None, None
        if _error(bounds) > SMALL_ERROR:
            bounds = evaluate(training, data, repeats=MORE_EVALUATIONS)
        return float(np.mean(bounds)), _error(bounds)

    def _score(self, training: Training, entry: Entry) -> float:
        """The bound that restarts are compared by, larger is better; -inf where it is missing."""
        bound = entry["bound" if self.held_out is None else "held_out"]
        return -math.inf if bound is None else -training.sign * float(bound)

    def _trajectory(self, training: Training) -> Trajectory:
        assigned = None
        if training.options.seed not in self._failures:
            rows = first_rows(self.train, CLUSTERED_ROWS)
            assigned = self.attempt("clusterings", lambda: clusterings(training.pair, *rows))
        return Trajectory(
            training.iterates.tensors(),
            last_bounds(training.history["bound"]),
            assigned or {},
        )


def _error(bounds: list[float]) -> float:
    return float(np.std(bounds, ddof=1) / math.sqrt(len(bounds)))
