"""Which objectives suit a pair, and which do not and why: ours and Pyro's.

Ours say it themselves: an estimator's conditions are data on its class, and it refuses a pair
that does not meet them. Pyro's do not; what is silently wrong with them is known here.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer.inspect import get_dependencies

from ppl_lvm import estimators, objectives
from ppl_lvm.check.enumeration import summed_out
from ppl_lvm.check.findings import Suitability
from ppl_lvm.check.look import Look
from ppl_lvm.dry_run import dry_run
from ppl_lvm.particles.plan import Plan, make_plan


def suitability(look: Look) -> tuple[Suitability, ...]:
    """Every estimator of ours, then every objective of Pyro's that `fit` takes."""
    with (
        dry_run(*look.programs, seed=0),
        torch.random.fork_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return (*_ours(look), *_pyros(look))


def _ours(look: Look) -> Iterator[Suitability]:
    try:
        plan = make_plan(*look.programs, look.batch, {})
    except Exception as error:  # whatever an estimator would stop at
        said = (str(error).splitlines() or [type(error).__name__])[0]
        yield from (Suitability(name, False, said) for name in estimators.__all__)
        return
    for name in estimators.__all__:
        estimator = getattr(estimators, name)()
        try:
            estimator.check(plan)
        except ValueError as error:
            yield Suitability(name, False, str(error))
            continue
        yield Suitability(name, True, _condition(estimator, plan))


def _condition(estimator: Any, plan: Plan) -> str:
    if plan.joint_because is not None and not estimator.linear:
        return f"on the whole data only: {plan.joint_because}, so mini-batches give no bound"
    return ""


def _pyros(look: Look) -> Iterator[Suitability]:
    assert look.model.signature is not None
    assert look.guide.trace is not None
    summed = [site.name for site in look.model.signature.latents if summed_out(site, look)]
    for name in objectives.PYRO_OBJECTIVES:
        if summed and name != "TraceEnum_ELBO":
            why = f"It does not sum {summed[0]!r} out, but draws it from the prior."
            yield Suitability(name, False, f"{why} Use TraceEnum_ELBO.")
            continue
        objective = objectives.objective(name)
        refusals = [
            _refusal(objective, look.guide.trace, subsampled) for subsampled in (False, True)
        ]
        if refusals[0]:
            yield Suitability(name, False, refusals[0])
        elif name == "TraceMeanField_ELBO" and (link := _linked(look)) is not None:
            yield Suitability(
                name,
                False,
                f"It takes the guide's sites for independent, but {link[0]!r} depends on "
                f"{link[1]!r}. Use ELBO or Trace_ELBO.",
            )
        elif refusals[1]:
            yield Suitability(name, True, f"on the whole data only: {refusals[1]}")
        else:
            yield Suitability(name, True)


def _refusal(objective: Any, guide_trace: Any, subsampled: bool) -> str:
    try:
        objectives.refuse_wrong_gradients(objective, guide_trace, subsampled=subsampled)
    except ValueError as error:
        return str(error)
    return ""


def _linked(look: Look) -> tuple[str, str] | None:
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
