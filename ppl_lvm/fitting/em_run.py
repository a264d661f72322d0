"""What a fit by expectation-maximisation leaves behind."""

import time
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows, initialization_rows
from ppl_lvm.estimators.objectives import objective as make_objective
from ppl_lvm.posterior.evidence import log_evidence
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import DEFAULT_GUIDE, GuideFactory, ModelFactory
from ppl_lvm.programs.traces import latent_sites
from ppl_lvm.runs.record import environment_record, evidence_record
from ppl_lvm.runs.run import TEMPLATE_ROWS, Run
from ppl_lvm.training.em.statistics import State
from ppl_lvm.training.restarts import selection_score
from ppl_lvm.training.trajectory import CLUSTERED_ROWS, Trajectory, clusterings


@dataclass
class Outcome:
    """Where the restarts arrived.

    Attributes:
        state: θ with the restarts leading.
        bounds, held_out: log-likelihoods on the way, nats per row, one list a restart.
        converged: one truth a restart; None where nobody judges.
    """

    state: State
    bounds: list[list[float]]
    held_out: list[list[float]]
    converged: list[Any]

    def of(self, r: int) -> State:
        """θ of restart `r`."""
        return {name: t[r] for name, t in self.state.items()}


def record(
    source: ModelFactory,
    guides: GuideFactory,
    whole: Data,
    train: Data,
    held_out: Data | None,
    validation: Any,
    options: dict[str, Any],
    restarts: int,
) -> dict[str, Any]:
    """What was asked, as plain data."""
    return {
        "model": source.recipe.record(),
        "guide": guides.recipe.record(),
        "objective": None,
        "algorithm": "expectation-maximisation",
        "options": options,
        "num_restarts": restarts,
        **environment_record(
            whole,
            train_rows=len(train),
            held_out_rows=0 if held_out is None else len(held_out),
            validation=validation if isinstance(validation, int | float) else None,
        ),
        "results": None,
    }


def as_run(
    model: Any,
    guides: GuideFactory,
    train: Data,
    held_out: Data | None,
    asked: dict[str, Any],
    outcome: Outcome,
    begun: float,
) -> Run:
    """The best restart as a run."""
    seed = asked["options"]["seed"]
    with torch.no_grad():
        entries = [_entry(model, train, outcome, r, seed + r) for r in range(len(outcome.bounds))]
    sound = [e for e in entries if e["degenerate"] is None]
    best = max(sound or entries, key=selection_score)
    chosen = entries.index(best)
    for entry in entries:
        entry["chosen"] = entry is best
        entry["seconds"] = time.perf_counter() - begun  # they ran together
    model.set_em_state(outcome.of(chosen))
    template = first_rows(train, TEMPLATE_ROWS)
    with pyro.get_param_store().scope():
        made = guides.make(model, template)
    pair = ModelGuidePair(model, made, make_objective("Trace_ELBO"))
    latents = latent_sites(pair.materialize_parameters(*template))
    summed = guides.recipe.address == DEFAULT_GUIDE and bool(latents)
    objective = "TraceEnum_ELBO(max_plate_nesting=1)" if summed else "Trace_ELBO"
    pair.objective = make_objective(objective)
    rows = initialization_rows(train if held_out is None else held_out)
    evidence = log_evidence(pair, *rows, num_particles=10, seed=seed)
    of = "training rows" if held_out is None else "held-out rows"
    results = {"directory": None, **{k: v for k, v in best.items() if k != "chosen"}}
    results |= evidence_record(evidence, of=of, rows=len(rows[0]))
    asked = {**asked, "objective": objective, "restarts": entries, "results": results}
    aside = outcome.held_out[chosen] if outcome.held_out else []
    steps = len(outcome.bounds[chosen])
    history = {
        "bound": outcome.bounds[chosen],
        "validation_step": [float(steps - len(aside) + i + 1) for i in range(len(aside))],
        "validation_bound": aside,
        "learning_rate": [],
    }
    run = Run(pair, template, history, asked)
    run.trajectories = _trails(run, train, outcome, chosen)
    return run


def _entry(model: Any, train: Data, outcome: Outcome, r: int, seed: int) -> dict[str, Any]:
    """What is reported of restart `r`; its log-likelihoods are exact."""
    model.set_em_state(outcome.of(r))
    degenerate = getattr(model, "degenerate", None)
    aside = outcome.held_out[r] if outcome.held_out else []
    return {
        "seed": seed,
        "bound": outcome.bounds[r][-1],
        "bound_monte_carlo_error": 0.0,
        "held_out": aside[-1] if aside else None,
        "held_out_monte_carlo_error": 0.0 if aside else None,
        "steps": len(outcome.bounds[r]),
        "converged": outcome.converged[r],
        "degenerate": None if degenerate is None else degenerate(*initialization_rows(train)),
    }


def _trails(run: Run, train: Data, outcome: Outcome, chosen: int) -> tuple[Trajectory, ...]:
    """How each restart divides some of the rows."""
    model: Any = run.model
    rows = first_rows(train, CLUSTERED_ROWS)
    R, trails = len(outcome.bounds), {}
    for r in [*(r for r in range(R) if r != chosen), chosen]:  # the chosen one is left in place
        model.set_em_state(outcome.of(r))
        trails[r] = Trajectory(responsibilities=clusterings(run.pair, *rows))
    return tuple(trails[r] for r in range(R))
