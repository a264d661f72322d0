"""Fit a model and a guide by stochastic variational inference.

    run = fit(GaussianMixture(components=3), None, "iris", restarts=5)
    run.results["bound"], run.parameters(), run.sample(100)

A step passes through `fit`, `training.restarts`, `training.loop`, `training.gradient_step`, the
objective, and the programs.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO

from ppl_lvm.core.console import Progress
from ppl_lvm.core.distributions import named_distribution_errors
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.core.validate import DataSource, ProgramSource
from ppl_lvm.data.selection import first_rows
from ppl_lvm.estimators import objectives
from ppl_lvm.fitting.approximation import choose_method, fit_posterior
from ppl_lvm.fitting.session import (
    Session,
    as_plain,
    in_precision_of_data,
    no_evidence,
    releases_directory,
)
from ppl_lvm.posterior.evidence import num_latent_values
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.precision import in_double
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.runs.run import TEMPLATE_ROWS, Run
from ppl_lvm.training.arrival import describe_arrival
from ppl_lvm.training.option_signatures import takes_options
from ppl_lvm.training.options import FitOptions
from ppl_lvm.training.restarts import RestartResults, RestartRunner

logger = logging.getLogger("ppl_lvm")

EVIDENCE_PARTICLES = 1000
EVIDENCE_NUMBERS = 100_000_000  # drawn at most: a chain of wide latents gets fewer particles
EVIDENCE_ROWS = 1000
ON_DISK_ROWS = 1024  # of a step, where the rows are in files


@takes_options(FitOptions)
@releases_directory
@in_precision_of_data
@named_distribution_errors()
def fit(
    model: ProgramSource, guide: ProgramSource | None, data: DataSource, options: FitOptions
) -> Run:
    """Fit a model and a guide to data by stochastic variational inference.

    The programs passed in stay as they are; the fitted copies are `run.model` and `run.guide`.
    Where batches are small, restarts are trained together in one graph, each with the result of
    its separate run.

    Args:
        model: a Pyro program of the batch, `model(x)` or `model(x, y)`, whose sites per row are
            in `pyro.plate("data", len(x))`; or a class of such, or its address. Its optional
            methods `initialize(*batch)` (initial values from at most 100,000 rows) and
            `degenerate(*batch)` (why this solution must not be chosen, or None) are used.
        guide: a program with the model's signature, a builder of such, an address, or None for
            the default guide.
        data: see `load_data`: a name, a file, arrays, tensors, a torch Dataset or DataLoader.
            Programs and run are in double precision if a tensor of the data is.

    Raises:
        ValueError: the data, the pair or the options do not fit together; the message names the
            cause and the remedy.
        NonFiniteError: the loss became NaN or infinite; names the parameter, site or row.
    """
    session = Session(data, options)
    method = choose_method(model, guide, options, session)
    if method != "svi":
        return fit_posterior(model, data, options, method, say=_say(options.progress))
    on_disk = ON_DISK_ROWS if session.train.blocks is not None else None
    training_options = options.settle(len(session.train), session.data.batch_size or on_disk)
    if options.patience is not None and session.held_out is None:
        raise ValueError("patience needs a validation bound: pass validation=0.1.")
    if options.directory is not None:
        _warn_of_objective(options.objective)
    model, guide = in_double(*copy_programs(model, guide))
    runner = RestartRunner(
        ModelFactory(model, options.settings),
        GuideFactory(guide, options.guide_settings),
        options.objective,
        session.train,
        session.held_out,
        training_options,
        num_restarts=options.restarts,
        show_progress=options.progress,
    )
    first = runner.prepare(0)  # the pair is checked before anything is written
    finished = session.open(
        runner.model,
        runner.guide,
        {name: as_plain(v) for name, v in vars(training_options).items() if name != "log"},
        definitions={"objective": options.objective},
        restarts=options.restarts,
        objective=as_plain(options.objective),
    )
    if finished is not None:
        return finished
    restarts = runner.run(first, session.path, session.attempt, session.identity)
    run = session.close(_as_run(restarts, session), lambda: _evidence(restarts, session))
    if options.progress:
        Progress(1).say(describe_arrival(run.results))
    elif not run.results["converged"]:
        logger.warning(describe_arrival(run.results))
    return run


def _say(shown: bool) -> Callable[[str], None]:
    """Prints a line on standard error, if a fit shows its progress."""
    return Progress(1).say if shown else lambda line: None


def _warn_of_objective(objective: str | ELBO | None) -> None:
    """Warn of an objective that the run's directory cannot determine."""
    if isinstance(objective, ELBO) and not objectives.is_rebuilt(objective):
        warnings.warn(
            f"objective: {describe(objective)} cannot be built again from the settings in "
            "run.json. Pass it when you load the run: load_run(directory, objective=...).",
            stacklevel=3,
        )


def _as_run(restarts: RestartResults, session: Session) -> Run:
    """The run of the chosen restart."""
    pair, record = restarts.best.pair, session.record
    record["restarts"] = restarts.record()
    record["objective"] = objectives.record_text(pair.objective)
    record["results"] = {
        "directory": None,
        **restarts.best_entry,
        **no_evidence(session.evaluation_name),
    }
    template = first_rows(session.train, TEMPLATE_ROWS)
    history = restarts.best.history
    return Run(pair, template, history, record, trajectories=restarts.trajectories)


def _evidence(restarts: RestartResults, session: Session) -> dict[str, Any]:
    """The log evidence by the chosen restart."""
    pair = restarts.best.pair
    evaluated = session.evidence_rows(pair, EVIDENCE_ROWS)
    rows = first_rows(evaluated, len(evaluated))
    affordable = EVIDENCE_NUMBERS // max(len(rows[0]), num_latent_values(pair, *rows))
    particles = max(1, min(EVIDENCE_PARTICLES, affordable))
    return session.evidence(pair, rows, particles, evaluated.weights)
