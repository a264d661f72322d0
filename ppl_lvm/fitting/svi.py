"""fit: a model, a guide, data -> a Run.

    run = fit(GaussianMixture(components=3), None, "iris", restarts=5)
    run.results["bound"], run.parameters(), run.sample(100)

The way of a step: `fit` -> `training` (batch -> step) -> the objective -> the programs.
"""

import math
from pathlib import Path
from typing import Any

from pyro.infer import ELBO

from ppl_lvm.compiler import LEVELS, Level
from ppl_lvm.core import distributed as processes
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.data import Data, load_data
from ppl_lvm.data.selection import first_rows, sample_rows, split_validation
from ppl_lvm.posterior.evidence import drawn_numbers, log_evidence
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.report.run_figures import draw
from ppl_lvm.runs.directory import load_run, open_run_directory
from ppl_lvm.runs.record import environment_record, evidence_record
from ppl_lvm.runs.run import TEMPLATE_ROWS, Run
from ppl_lvm.training.gradient_step import Options
from ppl_lvm.training.restarts import RestartResults, RestartRunner

DEFAULT_STEPS = 2000
EVIDENCE_PARTICLES = 1000
EVIDENCE_NUMBERS = 100_000_000  # drawn at most: a chain of wide latents gets fewer particles
EVIDENCE_ROWS = 1000


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
    runner = RestartRunner(
        *sources,
        objective,
        train,
        held_out,
        options,
        num_restarts=restarts,
        show_progress=progress,
    )
    record = _record(runner, whole, share)
    if directory is None and resume:
        raise ValueError("resume=True needs the directory of the run to continue.")
    # Whatever does not fit together shows before anything is written.
    first = runner.prepare(0)
    runner.check(first)
    path = None if directory is None else Path(directory)
    if path is not None:
        finished = processes.by_first(lambda: open_run_directory(path, record, resume))
        if processes.from_first(finished is not None):
            return finished or load_run(path)
    return _assemble(runner, runner.run(first, path), path, record)


def _record(runner: RestartRunner, whole: Data, validation: int | float | None) -> dict[str, Any]:
    """The request as plain data."""
    options = {k: v if _is_plain(v) else describe(v) for k, v in vars(runner.options).items()}
    return {
        "model": runner.model.recipe.record(),
        "guide": runner.guide.recipe.record(),
        "objective": None if runner.objective is None else describe(runner.objective),
        "options": options,
        "num_restarts": runner.num_restarts,
        **environment_record(
            whole,
            train_rows=len(runner.train),
            held_out_rows=0 if runner.held_out is None else len(runner.held_out),
            validation=validation,
        ),
        "results": None,
    }


def _assemble(
    runner: RestartRunner, restarts: RestartResults, path: Path | None, record: dict[str, Any]
) -> Run:
    """The run of the chosen restart, saved and drawn where there is a directory."""
    best = restarts.best
    record["restarts"] = restarts.record()
    record["objective"] = describe(best.pair.objective)
    template = first_rows(runner.train, TEMPLATE_ROWS)
    record["results"] = _results(runner, restarts)
    run = Run(best.pair, template, best.history, record, trajectories=restarts.trajectories)
    if path is not None and processes.rank() == 0:
        record["results"]["directory"] = str(path)
        run.save(path)
        draw(run, runner.held_out or runner.train, path / "pictures")
    return run


def _results(runner: RestartRunner, restarts: RestartResults) -> dict[str, Any]:
    pair, seed = restarts.best.pair, runner.options.seed
    few = sample_rows(runner.held_out or runner.train, EVIDENCE_ROWS, seed)
    rows = first_rows(few, len(few))
    affordable = EVIDENCE_NUMBERS // max(1, drawn_numbers(pair, *rows))
    evidence = log_evidence(
        pair, *rows, num_particles=max(1, min(EVIDENCE_PARTICLES, affordable)), seed=seed
    )
    return {
        "directory": None,
        **restarts.best_entry,
        **evidence_record(
            evidence,
            of="held-out rows" if runner.held_out is not None else "training rows",
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
