"""Monte Carlo EM of a model, then its guide."""

from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_lvm.core import distributed
from ppl_lvm.core.console import Progress
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.core.validate import DataSource, ProgramSource
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows, initialization_rows
from ppl_lvm.fitting.session import (
    Session,
    degenerate_reason,
    in_precision_of_data,
    no_evidence,
    recorded,
    releases_directory,
)
from ppl_lvm.programs.exact_posterior import ExactPosterior
from ppl_lvm.programs.pair import ModelGuidePair, copy_programs
from ppl_lvm.programs.precision import in_double
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.runs.run import TEMPLATE_ROWS, Run
from ppl_lvm.training.em.complete_likelihood import CompleteLikelihood
from ppl_lvm.training.em.monte_carlo import MonteCarloEM
from ppl_lvm.training.em.nuts_sampler import Draws
from ppl_lvm.training.em.posterior_guide import estimate_bound, fit_guide, prepare_guide
from ppl_lvm.training.option_signatures import takes_options
from ppl_lvm.training.options import MonteCarloEMOptions
from ppl_lvm.training.preparation import require_running_model
from ppl_lvm.training.trajectory import Trajectory, last_bounds

EVIDENCE_PARTICLES = 1000


@takes_options(MonteCarloEMOptions)
@releases_directory
@in_precision_of_data
def fit_mcem(model: ProgramSource, data: DataSource, options: MonteCarloEMOptions) -> Run:
    """Fit a copy of a model by Monte Carlo EM, then a guide to it.

    Args:
        model: a module whose latents are continuous and whose parameters are `nn.Parameter` or
            `PyroParam`; a class of such, or its address.
        data: see `load_data`; every iteration uses all rows.

    Returns:
        A run whose history has "complete" and "accept" of every iteration (see `MonteCarloEM`)
        and the bound of the guide's training. Its `draws` are the last of the chain: site ->
        (S, …) of the posterior of the training rows.

    Raises:
        ValueError: no parameters, no latents, discrete latents, a guide that does not fit, or an
            option out of range.
    """
    if distributed.world_size() > 1:
        raise ValueError("fit_mcem: it runs in one process. Start it without torchrun.")
    session = Session(data, options)
    session.repeat_weighted_rows("fit_mcem")
    train = session.train
    model, guide = in_double(*copy_programs(model, options.guide))
    factory = ModelFactory(model, options.settings)
    instance = _initial_model(factory, session)
    if guide is None and hasattr(instance, "posterior"):
        guide = ExactPosterior
    guides = GuideFactory(guide, options.guide_settings)
    prepare_guide(instance, guides, train, session.seed, checked=True)
    algorithm = "Monte Carlo expectation-maximization"
    finished = session.open(factory, guides, recorded(options), algorithm=algorithm)
    if finished is not None:
        return finished
    em, draws = _iterate(instance, session, options)
    pair, summed = prepare_guide(instance, guides, train, session.seed)
    history = session.attempt(
        "trained guide",
        lambda: fit_guide(
            pair,
            summed,
            train,
            session.held_out,
            num_steps=options.guide_steps,
            seed=session.seed,
            progress=Progress(options.guide_steps, title="guide", shown=options.progress),
        ),
    ) or {"bound": [], "validation_step": [], "validation_bound": []}
    trajectory = Trajectory(em.iterates.tensors(), last_bounds(history["bound"]))
    run = _as_run(pair, session, {**history, **em.history}, options.max_iterations)
    run.trajectories, run.draws = (trajectory,), draws
    rows = initialization_rows(session.evaluation_data)
    return session.close(run, lambda: session.evidence(run.pair, rows, EVIDENCE_PARTICLES))


def _initial_model(factory: ModelFactory, session: Session) -> Any:
    """The model before its first iteration.

    Raises:
        ValueError: NUTS has no E-step for it.
    """
    pyro.set_rng_seed(session.seed)
    rows = _all_rows(session.train)
    with pyro.get_param_store().scope():
        model = factory.make(rows)
        require_running_model(model, *rows)
        CompleteLikelihood(model, rows)
    return model


def _iterate(
    model: Any, session: Session, options: MonteCarloEMOptions
) -> tuple[MonteCarloEM, Draws]:
    """All iterations, and draws at the result."""
    pyro.set_rng_seed(session.seed)
    with pyro.get_param_store().scope():
        em = MonteCarloEM(
            model,
            _all_rows(session.train),
            max_iterations=options.max_iterations,
            num_draws=options.num_draws,
            warmup=options.warmup,
            progress=Progress(
                options.max_iterations,
                title="Monte Carlo EM",
                figure="log p(x, z)",
                shown=options.progress,
            ),
        )
        session.iterate(em, options.max_iterations)
        return em, session.attempt("draws", em.finish) or {}


def _as_run(
    pair: ModelGuidePair, session: Session, history: dict[str, list[float]], iterations: int
) -> Run:
    """The run, evaluated by its guide."""
    pair.eval_mode()
    train, record = session.train, session.record
    with pair.scope(), torch.no_grad():
        degenerate = degenerate_reason(pair.model, session)
    bound, error = _bound(pair, session, "bound", train)
    held_out = held_out_error = None
    if session.held_out is not None:
        held_out, held_out_error = _bound(pair, session, "held-out bound", session.held_out)
    entry = {
        "seed": session.seed,
        "bound": bound,
        "bound_monte_carlo_error": error,
        "held_out": held_out,
        "held_out_monte_carlo_error": held_out_error,
        "steps": iterations,
        "degenerate": degenerate,
        "seconds": session.seconds,
    }
    record["objective"] = describe(pair.objective)
    record["restarts"] = [{**entry, "chosen": True}]
    record["results"] = {"directory": None, **entry, **no_evidence(session.evaluation_name)}
    return Run(pair, first_rows(train, TEMPLATE_ROWS), history, record)


def _bound(
    pair: ModelGuidePair, session: Session, name: str, data: Data
) -> tuple[float, float] | tuple[None, None]:
    """A bound and its Monte Carlo error; None where it cannot be computed."""
    rows = len(session.train)
    estimate = session.attempt(name, lambda: estimate_bound(pair, data, rows, session.seed))
    return estimate or (None, None)


def _all_rows(data: Data) -> tuple[Tensor, ...]:
    return first_rows(data, len(data))
