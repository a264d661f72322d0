"""fit: a model, a guide, data -> a Run.

    run = fit(GaussianMixture(components=3), None, "iris", restarts=5)
    run.results["bound"], run.parameters(), run.sample(100)

The way of a step: `fit` -> `training` (batch -> step) -> the objective -> the programs.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO

from ppl_lvm.compiler import LEVELS, CannotCaptureError, Level
from ppl_lvm.core import distributed as processes
from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.data import Data, load_data
from ppl_lvm.data.selection import first_rows, initialization_rows, sample_rows, split_validation
from ppl_lvm.posterior.evidence import drawn_numbers, log_evidence
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.report.run_figures import draw
from ppl_lvm.runs.directory import open_run_directory
from ppl_lvm.runs.run import (
    TEMPLATE_ROWS,
    Run,
    environment_record,
    evidence_record,
    load_run,
    selection_score,
)
from ppl_lvm.training.checkpoint import load as resume_from
from ppl_lvm.training.gradient_step import Options
from ppl_lvm.training.loop import Training
from ppl_lvm.training.preparation import prepare_pair, raise_on_errors
from ppl_lvm.training.trajectory import CLUSTERED_ROWS, Trajectory, clusterings, last_bounds
from ppl_lvm.training.vectorized_restarts import VectorizedRestarts
from ppl_lvm.training.vectorized_restarts import reject_unsupported as refuse_together

GUIDE_ROWS = 1024  # what a guide's builder sees: enough to take the columns' scale from
DEFAULT_STEPS = 2000
EVIDENCE_PARTICLES = 1000
EVIDENCE_NUMBERS = 100_000_000  # drawn at most: a chain of wide latents gets fewer particles
EVIDENCE_ROWS = 1000
EVALUATION_ROWS = 10_000
EVALUATIONS = 8  # of the final bound: enough to say how far its draws let it wander


def fit(
    model: Any,
    guide: Any,
    data: Any,
    *,
    objective: str | ELBO | None = None,
    optimizer: Any = "Adam(lr=0.01)",
    schedule: Any = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    validation: int | float | Any = None,
    validate_every: int | None = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    kl_weight: float = 1.0,
    kl_annealing: int = 0,
    restarts: int = 1,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    guide_settings: dict[str, Any] | None = None,
    directory: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    engine: Level = "auto",
    steps_per_call: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Fit a model and a guide to data by stochastic variational inference.

    Works on copies: the programs passed in stay as they are, the fitted ones are `run.model` and
    `run.guide`.

    Args:
        model: a Pyro program of the batch, `model(x)` or `model(x, y)`, with per-datum sites in
            `pyro.plate("data", len(x))`; or a class of such, or its address. Its optional
            methods `initialize(*batch)` (a start from the data, called on at most 100,000 rows)
            and `degenerate(*batch)` (why this solution must not be chosen, or None) are used.
        guide: a program with the model's signature, a builder of such, an address, or None for
            the default guide.
        data: see `load_data`: a name, a file, arrays, tensors, a torch Dataset or DataLoader.
        objective: a `pyro.infer.ELBO` or its name in call syntax, "IWAE(num_particles=5)";
            None: the ELBO, discrete sites that the guide leaves out summed out, by the
            leave-one-out score function where the guide is not reparameterised.
        optimizer: "Adam(lr=0.01)": any torch optimiser in call syntax, or a callable of the
            parameters. It sees the gradient of the loss in nats per row.
        schedule: a torch learning-rate schedule in call syntax, stepped every step
            (ReduceLROnPlateau: every evaluation), or a callable of the optimiser.
        num_steps, num_epochs: how long; give one of them (default: 2,000 steps).
        batch_size: rows a step sees (default: all, or what a DataLoader says).
        validation: rows to hold out (an int), a fraction of them, or data of its own.
        validate_every: steps between evaluations (default: an epoch, at least 100 steps).
        patience: stop after this many evaluations without a better validation bound, and go back
            to the best parameters.
        clip_norm: cut the gradient's norm to this (nats per row).
        kl_weight, kl_annealing: β of the KL term, reached linearly over so many steps.
        restarts: independent starts with seeds seed, seed + 1, …; the best one is kept that the
            model does not call degenerate, all are reported in `run.restarts`. Where batches are
            small they are trained together in one graph, each with its own run's result.
        seed: of every random number; the same seed gives the same run.
        settings, guide_settings: arguments for programs given as classes or addresses.
        directory: keep the run there, with checkpoints while it runs.
        checkpoint_seconds: at least this long between two checkpoints.
        engine: how steps are taken, equal to rounding at every level. "eager" runs the program at
            each; "captured" replays its recorded tensor operations; "compiled" has them and the
            update compiled. "auto" captures, has the step compiled in the background where the
            run is long enough to pay for it, and goes on eagerly, saying why, where a program
            cannot be captured; "captured" and "compiled" then fail.
        steps_per_call: steps that a compiled call takes at most. Evaluations, checkpoints and the
            progress shown come between calls. Starts trained together, and several processes,
            take one.
        resume: continue the run in `directory` exactly where its last checkpoint stands.
        progress: show a bar, or plain lines where output is no terminal.

    Raises:
        ValueError: the data, the pair or the options do not fit together; the message names what
            and the remedy.
        NonFiniteError: the loss became NaN or infinite; names parameter, site or data row.
    """
    whole = data if isinstance(data, Data) else load_data(data)
    train, held_out = split_validation(whole, validation, seed)
    if batch_size is None:
        batch_size = whole.batch_size or len(train)
    options = Options(
        num_steps=_num_steps(num_steps, num_epochs, len(train), batch_size),
        batch_size=_positive("batch_size", min(batch_size, len(train))),
        seed=seed,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=clip_norm,
        kl_weight=kl_weight,
        kl_annealing=kl_annealing,
        validate_every=validate_every or max(100, math.ceil(len(train) / batch_size)),
        patience=patience,
        checkpoint_seconds=checkpoint_seconds,
        engine=_one_of("engine", engine, LEVELS),
        steps_per_call=_positive("steps_per_call", steps_per_call),
    )
    _positive("restarts", restarts)
    if patience is not None and held_out is None:
        raise ValueError("patience needs a validation bound: pass validation=0.1.")
    if not isinstance(model, str) and not isinstance(guide, str):
        model, guide = copy_programs(model, guide)
    sources = (ModelFactory(model, settings), GuideFactory(guide, guide_settings))
    share = validation if isinstance(validation, int | float) else None
    fitting = RestartRunner(sources, objective, train, held_out, options, restarts, progress, share)
    record = fitting.record(whole)
    if directory is None and resume:
        raise ValueError("resume=True needs the directory of the run to continue.")
    # Whatever does not fit together shows before anything is written.
    first = fitting.start(0)
    fitting.check(first)
    path = None if directory is None else Path(directory)
    if path is not None:
        finished = processes.by_first(lambda: open_run_directory(path, record, resume))
        if processes.from_first(finished is not None):
            return finished or load_run(path)
    return fitting.run(first, path, record)


class RestartRunner:
    """The restarts of one fit, and what comes of the best."""

    def __init__(
        self,
        sources: tuple[ModelFactory, GuideFactory],
        objective: str | ELBO | None,
        train: Data,
        held_out: Data | None,
        options: Options,
        restarts: int,
        progress: bool,
        validation: int | float | None,
    ) -> None:
        self.model, self.guide = sources
        self.objective, self.train, self.held_out = objective, train, held_out
        self.options, self.restarts, self.progress = options, restarts, progress
        self.validation = validation

    def record(self, whole: Data) -> dict[str, Any]:
        """What was asked, as plain data."""
        options = {k: v if _is_plain(v) else describe(v) for k, v in vars(self.options).items()}
        return {
            "model": self.model.recipe.record(),
            "guide": self.guide.recipe.record(),
            "objective": None if self.objective is None else describe(self.objective),
            "options": options,
            "num_restarts": self.restarts,
            **environment_record(
                whole,
                train_rows=len(self.train),
                held_out_rows=0 if self.held_out is None else len(self.held_out),
                validation=self.validation,
            ),
            "results": None,
        }

    def run(self, first: Training, path: Path | None, record: dict[str, Any]) -> Run:
        """Train every restart, keep the best."""
        if self.restarts == 1:
            found = [self._train(first, 0, path)]
        else:
            found = self._train_several(first, path)
        trails = [self._trail(training) for training, _ in found]
        sound = [f for f in found if f[1]["degenerate"] is None]
        best, entry = max(sound or found, key=lambda f: -f[0].sign * selection_score(f[1]))
        record["restarts"] = [{**e, "chosen": e is entry} for _, e in found]
        record["objective"] = describe(best.pair.objective)
        template = first_rows(self.train, TEMPLATE_ROWS)
        record["results"] = self._results(best, entry)
        run = Run(best.pair, template, best.history, record, trails=trails)
        if path is not None and processes.rank() == 0:
            record["results"]["directory"] = str(path)
            run.save(path)
            draw(run, self.held_out or self.train, path / "pictures")
        return run

    def start(self, number: int) -> Training:
        """Restart `number` before its first step, with the random state that belongs to it."""
        options = replace(self.options, seed=self.options.seed + number)
        pyro.set_rng_seed(options.seed)
        rows = initialization_rows(self.train)
        example = first_rows(self.train, options.batch_size)
        with pyro.get_param_store().scope():  # programs that run to be made leave nothing behind
            model = self.model.make(rows, restart=number)
            guide = self.guide.make(model, first_rows(self.train, GUIDE_ROWS), restart=number)
        pair, summed = prepare_pair(model, guide, self.objective, example, self.train)
        return Training(pair, self.train, self.held_out, options, summed=summed)

    def check(self, training: Training) -> None:
        """Refuse a faulty pair; say in a line each what is doubtful about it."""
        example = first_rows(self.train, self.options.batch_size)
        for doubt in raise_on_errors(training.pair, *example, num_rows=len(self.train)):
            self._progress(training, "").say(doubt.in_a_line())

    def _train_several(
        self, first: Training, path: Path | None
    ) -> list[tuple[Training, dict[str, Any]]]:
        """All restarts, together if that can be had, else in turn."""
        try:
            refuse_together([first])
        except CannotCaptureError:  # in turn also in memory
            numbers = range(self.restarts)
            return [self._train(first if n == 0 else self.start(n), n, path) for n in numbers]
        trainings, states = [], []
        for number in range(self.restarts):
            training = first if number == 0 else self.start(number)
            self._resume(training, number, path)
            trainings.append(training)
            states.append(random_state())
        with self._progress(first, f"{self.restarts} restarts together") as progress:
            together: VectorizedRestarts | None = None
            try:
                together = VectorizedRestarts(
                    trainings, [state["random/torch"] for state in states]
                )
                together.run(progress)
            except CannotCaptureError as refusal:
                progress.say(f"One restart after the other: {refusal}.")
        found = []
        for number, (training, state) in enumerate(zip(trainings, states, strict=True)):
            set_random_state(state)
            if together is None:
                found.append(self._train(training, number, None, started=True))
            else:
                torch.set_rng_state(together.generators[number].get_state())
                found.append((training, self._judge(training)))
        return found

    def _resume(self, training: Training, number: int, path: Path | None) -> None:
        """Give a restart its place, and what stands there."""
        name = "checkpoint.safetensors" if self.restarts == 1 else f"restarts/{number}.safetensors"
        training.path = None if path is None else path / name
        if training.path is not None and training.path.exists():
            resume_from(training, training.path)

    def _progress(self, training: Training, title: str) -> Progress:
        shown = self.progress and processes.rank() == 0
        steps = self.options.num_steps
        return Progress(steps, done=training.step_number, title=title, shown=shown)

    def _train(
        self, training: Training, number: int, path: Path | None, *, started: bool = False
    ) -> tuple[Training, dict[str, Any]]:
        if not started:
            self._resume(training, number, path)
        title = "" if self.restarts == 1 else f"restart {number + 1} of {self.restarts}"
        with self._progress(training, title) as progress:
            training.run(progress)
        return training, self._judge(training)

    def _judge(self, training: Training) -> dict[str, Any]:
        """What is reported of a restart."""
        pair, options = training.pair, training.options
        pair.eval_mode()
        rows = initialization_rows(self.train)
        judged = sample_rows(self.train, EVALUATION_ROWS, options.seed)
        degenerate = getattr(pair.model, "degenerate", None)
        reason = None
        if degenerate is not None:
            with pair.scope():
                reason = degenerate(*rows)
        bound, error = training.evaluate(judged, repeats=EVALUATIONS)
        held_out = held_out_error = None
        if self.held_out is not None:
            held_out, held_out_error = training.evaluate(self.held_out, repeats=EVALUATIONS)
        return {
            "seed": options.seed,
            "bound": bound,
            "bound_monte_carlo_error": error,
            "held_out": held_out,
            "held_out_monte_carlo_error": held_out_error,
            "steps": training.step_number,
            "seconds": training.seconds,
            "engine": training.stepping.level,
            "degenerate": reason,
        }

    def _trail(self, training: Training) -> Trajectory:
        rows = first_rows(self.train, CLUSTERED_ROWS)
        return Trajectory(
            training.iterates.tensors(),
            last_bounds(training.history["bound"]),
            clusterings(training.pair, *rows),
        )

    def _results(self, best: Training, entry: dict[str, Any]) -> dict[str, Any]:
        judged = self.held_out if self.held_out is not None else self.train
        few = sample_rows(judged, EVIDENCE_ROWS, self.options.seed)
        rows = first_rows(few, len(few))
        affordable = EVIDENCE_NUMBERS // max(1, drawn_numbers(best.pair, *rows))
        evidence = log_evidence(
            best.pair,
            *rows,
            num_particles=max(1, min(EVIDENCE_PARTICLES, affordable)),
            seed=self.options.seed,
        )
        return {
            "directory": None,
            **entry,
            **evidence_record(
                evidence,
                of="held-out rows" if self.held_out is not None else "training rows",
                rows=len(few),
            ),
        }


def _num_steps(steps: int | None, epochs: int | None, rows: int, batch_size: int) -> int:
    if steps is not None and epochs is not None:
        raise ValueError("Give num_steps or num_epochs, not both.")
    if epochs is not None:
        return _positive("num_epochs", epochs) * math.ceil(rows / batch_size)
    return _positive("num_steps", DEFAULT_STEPS if steps is None else steps)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return value


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
