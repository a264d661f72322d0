"""Objectives that support a pair, with reasons for the others.

An estimator of this package declares its conditions on its class and refuses a pair that does not
meet them. Pyro's objectives do not; their silent errors are listed here.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

from ppl_lvm import estimators
from ppl_lvm.checks.enumeration import enumerated_in_model, rejects_scales
from ppl_lvm.checks.issues import ObjectiveSupport
from ppl_lvm.checks.trial_runs import TrialRuns
from ppl_lvm.core.distributions import is_point
from ppl_lvm.estimators import objectives
from ppl_lvm.particles.log_prob_tables import run_pair
from ppl_lvm.particles.structure import PairStructure, analyze_pair
from ppl_lvm.programs.dependencies import dependencies
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.row_plates import row_plates


def supported_objectives(runs: TrialRuns) -> tuple[ObjectiveSupport, ...]:
    """Support by every estimator of this package, then by every objective of Pyro in `fit`."""
    with dry_run(*runs.programs, seed=0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan: PairStructure | str
        try:
            plan = analyze_pair(*runs.programs, runs.batch, {}, any_plate=True)
        except Exception as error:  # every estimator would stop here
            plan = (str(error).splitlines() or [type(error).__name__])[0]
        return (*_estimators(runs, plan), *_pyro_objectives(runs, plan))


def _estimators(runs: TrialRuns, plan: PairStructure | str) -> Iterator[ObjectiveSupport]:
    if isinstance(plan, str):
        yield from (ObjectiveSupport(name, False, plan) for name in estimators.__all__)
        return
    for name in estimators.__all__:
        estimator = getattr(estimators, name)()
        try:
            estimator.validate(plan)
            run = partial(run_pair, *runs.programs, runs.batch, {}, plan)
            estimator.validate_programs(run, plan)
        except ValueError as error:
            yield ObjectiveSupport(name, False, str(error))
            continue
        yield ObjectiveSupport(name, True, _condition(estimator, plan))


def _condition(estimator: Any, plan: PairStructure) -> str:
    if plan.joint_reason is not None and not estimator.is_linear:
        return f"on the whole data only: {plan.joint_reason}, so mini-batches give no bound"
    return ""


def _pyro_objectives(runs: TrialRuns, plan: PairStructure | str) -> Iterator[ObjectiveSupport]:
    for name in objectives.PYRO_OBJECTIVES:
        objective = objectives.objective(name)
        why = _enumeration(runs, name) or _refusal(objective, runs, False)
        if not why and not isinstance(plan, str) and plan.mixed and plan.score_sites:
            why = (
                f"It takes rows for independent, but {next(iter(plan.mixed.values()))[1]!r} of one "
                "row depends on draws of others, whose score terms it omits. Use LeaveOneOut."
            )
        if not why and name == "TraceMeanField_ELBO" and (link := _linked(runs)) is not None:
            why = (
                f"It assumes independent sites of the guide, but {link[0]!r} depends on "
                f"{link[1]!r}. Use ELBO or Trace_ELBO."
            )
        if why:
            yield ObjectiveSupport(name, False, why)
            continue
        condition = _refusal(objective, runs, True)
        yield ObjectiveSupport(name, True, condition and f"on the whole data only: {condition}")


def _enumeration(runs: TrialRuns, name: str) -> str:
    """Reason why an objective does not enumerate the marked sites; only TraceEnum_ELBO does."""
    assert runs.model.signature is not None
    enumerated = [
        site.name for site in runs.model.signature.latents if enumerated_in_model(site, runs)
    ]
    marked = [n for n, node in runs.guide.nodes().items() if node["infer"].get("enumerate")]
    if name == "TraceEnum_ELBO":
        if enumerated and rejects_scales(runs):
            return f"It rejects a poutine.scale inside the sum over {enumerated[0]!r}. Use ELBO."
        return (
            "" if enumerated or marked else "It has nothing to enumerate. Use ELBO or Trace_ELBO."
        )
    if enumerated:
        return (
            f"It draws {enumerated[0]!r} from the prior instead of enumerating it. "
            "Use TraceEnum_ELBO."
        )
    if marked:
        return f"It draws {marked[0]!r}, which the guide marks for enumeration. Use TraceEnum_ELBO."
    return ""


def _refusal(objective: Any, runs: TrialRuns, subsampled: bool) -> str:
    """Reason why `fit` would refuse the objective, or an empty string."""
    model, guide = runs.model.trace, runs.guide.trace
    assert model is not None
    assert guide is not None
    try:
        plates = row_plates(*runs.programs, batch=runs.batch).names
        objectives.refuse_wrong_gradients(objective, guide, plates, subsampled=subsampled)
        objectives.refuse_estimates(objective, model, guide)
    except ValueError as error:
        return str(error)
    return ""


def _linked(runs: TrialRuns) -> tuple[str, str] | None:
    """The first site of the guide that depends on another, and that other."""
    try:
        reads = dependencies(runs.programs[1], *runs.batch)
    except Exception:  # operations that cannot be followed
        return None
    points = {name for name, node in runs.guide.nodes().items() if is_point(node["fn"])}
    return next(
        ((site, others[0]) for site, others in reads.items() if others and site not in points), None
    )
