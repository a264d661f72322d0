"""Which objectives suit a pair, and which do not and why: ours and Pyro's.

Ours say it themselves: an estimator's conditions are data on its class, and it refuses a pair
that does not meet them. Pyro's do not; what is silently wrong with them is known here.
"""

import warnings
from collections.abc import Iterator
from typing import Any

from pyro.infer.inspect import get_dependencies

from ppl_lvm import estimators
from ppl_lvm.checks.enumeration import summed_out
from ppl_lvm.checks.issues import ObjectiveSupport
from ppl_lvm.checks.trial_runs import TrialRuns
from ppl_lvm.estimators import objectives
from ppl_lvm.particles.structure import PairStructure, analyze_pair
from ppl_lvm.programs.dry_run import dry_run


def suitability(look: TrialRuns) -> tuple[ObjectiveSupport, ...]:
    """Every estimator of ours, then every objective of Pyro's that `fit` takes."""
    with dry_run(*look.programs, seed=0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (*_ours(look), *_pyros(look))


def _ours(look: TrialRuns) -> Iterator[ObjectiveSupport]:
    try:
        plan = analyze_pair(*look.programs, look.batch, {})
    except Exception as error:  # whatever an estimator would stop at
        said = (str(error).splitlines() or [type(error).__name__])[0]
        yield from (ObjectiveSupport(name, False, said) for name in estimators.__all__)
        return
    for name in estimators.__all__:
        estimator = getattr(estimators, name)()
        try:
            estimator.validate(plan)
        except ValueError as error:
            yield ObjectiveSupport(name, False, str(error))
            continue
        yield ObjectiveSupport(name, True, _condition(estimator, plan))


def _condition(estimator: Any, plan: PairStructure) -> str:
    if plan.joint_reason is not None and not estimator.is_linear:
        return f"on the whole data only: {plan.joint_reason}, so mini-batches give no bound"
    return ""


def _pyros(look: TrialRuns) -> Iterator[ObjectiveSupport]:
    for name in objectives.PYRO_OBJECTIVES:
        objective = objectives.objective(name)
        why = _enumeration(look, name) or _refusal(objective, look, False)
        if not why and name == "TraceMeanField_ELBO" and (link := _linked(look)) is not None:
            why = (
                f"It takes the guide's sites for independent, but {link[0]!r} depends on "
                f"{link[1]!r}. Use ELBO or Trace_ELBO."
            )
        if why:
            yield ObjectiveSupport(name, False, why)
            continue
        condition = _refusal(objective, look, True)
        yield ObjectiveSupport(name, True, condition and f"on the whole data only: {condition}")


def _enumeration(look: TrialRuns, name: str) -> str:
    """Why an objective does not enumerate as the pair asks; TraceEnum_ELBO alone does."""
    assert look.model.signature is not None
    summed = [site.name for site in look.model.signature.latents if summed_out(site, look)]
    marked = [n for n, node in look.guide.nodes().items() if node["infer"].get("enumerate")]
    if name == "TraceEnum_ELBO":
        return "" if summed or marked else "It has nothing to enumerate. Use ELBO or Trace_ELBO."
    if summed:
        return (
            f"It draws {summed[0]!r} from the prior, and does not sum it out. Use TraceEnum_ELBO."
        )
    if marked:
        return f"It draws {marked[0]!r}, which the guide marks for enumeration. Use TraceEnum_ELBO."
    return ""


def _refusal(objective: Any, look: TrialRuns, subsampled: bool) -> str:
    """What `fit` would refuse the objective for."""
    model, guide = look.model.trace, look.guide.trace
    assert model is not None
    assert guide is not None
    try:
        objectives.refuse_wrong_gradients(objective, guide, subsampled=subsampled)
        objectives.refuse_estimates(objective, model, guide)
    except ValueError as error:
        return str(error)
    return ""


def _linked(look: TrialRuns) -> tuple[str, str] | None:
    """The first site of the guide that depends on another, and that other."""
    try:
        found: Any = get_dependencies(look.programs[1], look.batch)["prior_dependencies"]
    except (TypeError, RuntimeError, NotImplementedError, AssertionError):
        return None
    for site, upstream in found.items():
        for other in upstream:
            if other != site:
                return site, other
    return None
