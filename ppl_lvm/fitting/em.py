"""Expectation-maximization for models that have its two steps.

With parameters θ and the statistics T on which the likelihood of the complete data depends,

    E    T̄(θ) = Σ_n E[ T(x_n, z) | x_n, θ ],    L(θ) = Σ_n log p(x_n | θ),
    M    θ' = argmax_θ' E[ log p(x, z | θ') | x, θ ], a function of θ and T̄,

and L(θ') ≥ L(θ). T̄ and L are sums over rows. So data larger than memory are read in batches, and
processes that hold different rows (torch.distributed) add up their sums. Restarts are a leading
dimension of θ, made by `torch.vmap`: a model implements its steps for one restart.

Reference:
    Dempster, Laird, Rubin (1977). Maximum likelihood from incomplete data via the EM algorithm.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch

from ppl_lvm.core import distributed
from ppl_lvm.core.validate import DataSource, ProgramSource
from ppl_lvm.data.selection import (
    MAX_INITIALIZATION_ROWS,
    first_rows,
    initialization_rows,
    sample_index,
    sample_rows,
)
from ppl_lvm.estimators.objectives import objective as make_objective
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
from ppl_lvm.programs.sources import DEFAULT_GUIDE, GuideFactory, ModelFactory
from ppl_lvm.programs.traces import latent_sites
from ppl_lvm.runs.run import TEMPLATE_ROWS, Run
from ppl_lvm.training.em.batch import EM
from ppl_lvm.training.em.online import OnlineEM
from ppl_lvm.training.em.protocol import EMModel
from ppl_lvm.training.em.statistics import READ_ROWS, State
from ppl_lvm.training.option_signatures import takes_options
from ppl_lvm.training.options import EMOptions
from ppl_lvm.training.preparation import make_guide, require_running_model, warn_or_raise
from ppl_lvm.training.trajectory import CLUSTERED_ROWS, Trajectory, clusterings

BATCH_ITERATIONS, ONLINE_PASSES = 1000, 10
ONLINE_ROWS = 256
EVIDENCE_PARTICLES = 10


@takes_options(EMOptions)
@releases_directory
@in_precision_of_data
def fit_em(model: ProgramSource, data: DataSource, options: EMOptions) -> Run:
    """Fit a copy of a model by expectation-maximization.

    Args:
        model: an `EMModel`, a class of such or its address.
        data: see `load_data`. The model decides about missing values (NaN): load them with
            `load_data(source, missing="keep")`.

    Returns:
        A run whose history has one "bound" an iteration: log-likelihood in nats per row. For
        online EM it is that of each pass, at parameters that changed during the pass, and of the
        result. Under torch.distributed, every process returns the same parameters, and the first
        one writes.

    Raises:
        ValueError: the model does not have the two steps, or an option is out of range.
        NotMonotoneError: the log-likelihood fell by more than rounding.
    """
    return run_em(model, data, options)


def run_em(
    model: ProgramSource,
    data: DataSource,
    options: EMOptions,
    *,
    examine: bool = True,
    set_start: Callable[[Any], None] = lambda model: None,
) -> Run:
    """`fit_em` inside another public call.

    Args:
        examine: False leaves out the checks of the pair, the log evidence and the trajectories, for
            a model of this package, where they would take longer than the fit.
        set_start: changes the initial values of a model that is initialized.
    """
    session = Session(data, options)
    train = session.train
    if len(train) < distributed.world_size():
        raise ValueError(f"{len(train)} rows are too few for {distributed.world_size()} processes.")
    batch_em = options.decay is None
    iterations = options.max_iterations or (BATCH_ITERATIONS if batch_em else ONLINE_PASSES)
    batch_size = options.batch_size or session.data.batch_size
    batch_size = batch_size or (READ_ROWS if batch_em else ONLINE_ROWS)
    factory = ModelFactory(in_double(*copy_programs(model))[0], options.settings)
    instance, state = _initial_state(factory, session, options.restarts, set_start)
    exact = options.guide is None and hasattr(instance, "posterior")
    guides = GuideFactory(ExactPosterior if exact else options.guide)
    template = first_rows(train, TEMPLATE_ROWS)
    if examine:
        require_running_model(instance, *template)
        guide = make_guide(guides, instance, template)
        warn_or_raise(instance, guide, *template, by_gradient=False)
    finished = session.open(
        factory,
        guides,
        recorded(options, max_iterations=iterations, batch_size=batch_size),
        restarts=options.restarts,
        algorithm="expectation-maximization",
    )
    if finished is not None:
        return finished
    em: EM | OnlineEM
    with torch.no_grad():
        if options.decay is None:
            em = EM(instance, train, state, batch_size, options.tolerance, session.held_out)
        else:
            order = torch.Generator().manual_seed(session.seed)
            rows = sample_index(train, READ_ROWS, order)
            sizes: dict[str, Any] = {"batch_size": batch_size, "decay": options.decay}
            em = OnlineEM(instance, train, state, rows, **sizes, seed=session.seed)
        session.iterate(em, iterations)
        if isinstance(em, OnlineEM):
            em.finish(session.held_out)
    run = _as_run(instance, guides, session, em)
    if not examine:
        return session.close(run, dict, rows=train)
    run.trajectories = _trajectories(run, session, em)
    return session.close(run, lambda: _evidence(run, session), rows=train)


def _initial_state(
    factory: ModelFactory, session: Session, restarts: int, set_start: Callable[[Any], None]
) -> tuple[Any, State]:
    """A model whose steps are run, and θ of every restart, stacked."""
    model: Any = None
    states: list[State] = []
    for r in range(restarts):
        pyro.set_rng_seed(session.seed + r)
        model = factory.make(initialization_rows(session.train), restart=r, mix_starts=True)
        if not isinstance(model, EMModel):
            raise ValueError(
                f"{factory.recipe.name} does not offer expectation-maximization: it needs the "
                "methods em_state, set_em_state, e_step and m_step "
                "(see ppl_lvm.training.em.protocol.EMModel). Fit it by a gradient objective: fit."
            )
        set_start(model)
        states.append({name: t.detach().clone() for name, t in model.em_state().items()})
    return model, {name: torch.stack([s[name] for s in states]) for name in states[0]}


def _as_run(model: Any, guides: GuideFactory, session: Session, em: EM | OnlineEM) -> Run:
    """The best restart as a run."""
    train, record = session.train, session.record
    with torch.no_grad():
        entries = [_entry(model, session, em, r) for r in range(len(em.bounds))]
    sound = [entry for entry in entries if entry["degenerate"] is None]
    judged_by = "bound" if session.held_out is None else "held_out"
    best = max(sound or entries, key=lambda entry: float(entry[judged_by]))
    chosen = entries.index(best)
    for entry in entries:
        entry["seconds"] = session.seconds  # all restarts were iterated together
    _set_restart(model, em, chosen)
    template = first_rows(train, TEMPLATE_ROWS)
    with pyro.get_param_store().scope():
        guide = guides.make(model, template)
    pair = ModelGuidePair(model, guide, make_objective("Trace_ELBO"))
    latents = latent_sites(pair.materialize_parameters(*template))
    summed = guides.recipe.address == DEFAULT_GUIDE and bool(latents)
    record["objective"] = "TraceEnum_ELBO(max_plate_nesting=1)" if summed else "Trace_ELBO"
    pair.objective = make_objective(record["objective"])
    record["results"] = {"directory": None, **best, **no_evidence(session.evaluation_name)}
    record["restarts"] = [{**entry, "chosen": entry is best} for entry in entries]
    held_out = em.held_out_bounds[chosen]
    steps = len(em.bounds[chosen])
    history = {
        "bound": em.bounds[chosen],
        "validation_step": [float(steps - len(held_out) + i + 1) for i in range(len(held_out))],
        "validation_bound": held_out,
        "learning_rate": [],
    }
    return Run(pair, template, history, record)


def _evidence(run: Run, session: Session) -> dict[str, Any]:
    """The log evidence by the run's guide."""
    if session.evaluation_data.weights is None:
        rows = initialization_rows(session.evaluation_data)
        return session.evidence(run.pair, rows, EVIDENCE_PARTICLES)
    evaluated = sample_rows(session.evaluation_data, MAX_INITIALIZATION_ROWS, session.seed)
    rows = first_rows(evaluated, len(evaluated))
    return session.evidence(run.pair, rows, EVIDENCE_PARTICLES, evaluated.weights)


def _set_restart(model: Any, em: EM | OnlineEM, r: int) -> None:
    """Set the model's parameters to those of restart `r`."""
    model.set_em_state({name: t[r] for name, t in em.state.items()})


def _entry(model: Any, session: Session, em: EM | OnlineEM, r: int) -> dict[str, Any]:
    """Report of restart `r`; its log-likelihoods are exact."""
    _set_restart(model, em, r)
    held_out = em.held_out_bounds[r]
    return {
        "seed": session.seed + r,
        "initial_bound": em.bounds[r][0],
        "bound": em.bounds[r][-1],
        "bound_monte_carlo_error": 0.0,
        "held_out": held_out[-1] if held_out else None,
        "held_out_monte_carlo_error": 0.0 if held_out else None,
        "steps": len(em.bounds[r]),
        "converged": em.converged[r],
        "degenerate": degenerate_reason(model, session),
    }


def _trajectories(run: Run, session: Session, em: EM | OnlineEM) -> tuple[Trajectory, ...]:
    """Cluster assignments of some rows by every restart."""
    chosen = next(r for r, entry in enumerate(run.restarts) if entry["chosen"])
    model: Any = run.model
    rows = first_rows(session.train, CLUSTERED_ROWS)
    R, trajectories = len(em.bounds), {}
    for r in [*(r for r in range(R) if r != chosen), chosen]:  # the chosen θ stays in the model
        _set_restart(model, em, r)
        assigned = session.attempt("clusterings", lambda: clusterings(run.pair, *rows))
        trajectories[r] = Trajectory(responsibilities=assigned or {})
    return tuple(trajectories[r] for r in range(R))
