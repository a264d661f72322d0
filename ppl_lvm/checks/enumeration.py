"""Check that enumerated sites run and give the exact sum."""

import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, place_of
from ppl_lvm.estimators import ScoreFunction
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.signatures import Site

_SCALES = (
    "a common poutine.scale",
    "only supports scalar poutine.scale",
)  # TraceEnum_ELBO's errors
_UNEQUAL_SCALES = "summed over enumerated values together, but the scales are"  # that of the sum
_MAX_VALUES = 20  # largest number of values that are tried one by one


def check_enumeration(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Run the pair as TraceEnum_ELBO does, with all values of every marked site at once."""
    assert runs.model.signature is not None
    assert runs.guide.signature is not None
    marked = [site for site in runs.model.signature.latents if enumerated_in_model(site, runs)]
    in_guide = [site for site in runs.guide.signature.latents if site.values and site.enumerate]
    if not marked and not in_guide:
        return
    site = (marked or in_guide)[0]
    try:
        with torch.no_grad():
            loss = marginal_loss(runs)
    except Exception as error:  # every exception of a user's program is an issue
        yield _fails(runs, site, error)
        return
    if len(marked) == 1 and (site.values or 0) <= _MAX_VALUES:
        exact = _one_by_one(runs, site)
        if exact is not None and abs(loss - exact) > 1e-3 * (1 + abs(exact)):
            yield _mixes(runs, site, loss, exact)


def marginal_loss(runs: TrialRuns) -> Any:
    """The loss of TraceEnum_ELBO at the guide's draws: a tensor if gradients are enabled.

    A sum with a poutine.scale inside it, which TraceEnum_ELBO rejects, is that of ScoreFunction.

    Raises what the pair raises. Call it inside a `dry_run`, which holds the parameters.
    """
    try:
        return _loss(TraceEnum_ELBO(max_plate_nesting=_nesting(runs)), runs)
    except ValueError as error:
        if not is_scale_error(error):
            raise
    return _loss(ScoreFunction(), runs)


def rejects_scales(runs: TrialRuns) -> bool:
    """True if TraceEnum_ELBO rejects a poutine.scale inside the sum over enumerated values."""
    try:
        with torch.no_grad():
            _loss(TraceEnum_ELBO(max_plate_nesting=_nesting(runs)), runs)
    except Exception as error:  # every other exception of a user's program has its own check
        return is_scale_error(error)
    return False


def is_scale_error(error: Exception) -> bool:
    """True if TraceEnum_ELBO raised it for a poutine.scale inside the sum."""
    return any(text in str(error) for text in _SCALES)


def _loss(objective: Any, runs: TrialRuns) -> Any:
    model, guide = runs.programs
    with (
        dry_run(model, guide, seed=0),
        pyro.validation_enabled(True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        evaluate = objective.differentiable_loss if torch.is_grad_enabled() else objective.loss
        return evaluate(model, guide, *runs.batch)


def enumerated_nodes(runs: TrialRuns) -> dict[str, dict[str, Any]] | None:
    """Sample sites of the model at the guide's draws, with all values of every marked site.

    The values of a marked site have their own dimension, to the left of all plates. None if no
    site is marked, or if the program does not run so.
    """
    assert runs.model.signature is not None
    if not any(enumerated_in_model(site, runs) for site in runs.model.signature.latents):
        return None
    model, guide = runs.programs
    with dry_run(model, guide, seed=0), pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            draws = poutine.trace(guide).get_trace(*runs.batch)
            values = poutine.enum(poutine.replay(model, draws), -1 - _nesting(runs))
            return TrialRun(poutine.trace(values).get_trace(*runs.batch)).nodes()
        except Exception:  # every exception of a user's program is an issue of a later check
            return None


def over_values(log_prob: Tensor, runs: TrialRuns) -> Tensor:
    """The largest log-density over the values of enumerated sites, NaN if any is NaN."""
    values = log_prob.dim() - _nesting(runs)
    return log_prob if values <= 0 else log_prob.flatten(0, values - 1).amax(0)


def _nesting(runs: TrialRuns) -> int:
    """Number of plate dimensions of the pair."""
    signatures = [each.signature for each in (runs.model, runs.guide) if each.signature]
    return -min((plate.dim or 0 for each in signatures for plate in each.plates), default=0)


def enumerated_in_model(site: Site, runs: TrialRuns) -> bool:
    """True if the model marks the site for enumeration and the guide does not sample it."""
    assert runs.guide.signature is not None
    return site.enumerate == "parallel" and site.name not in runs.guide.signature


def _fails(runs: TrialRuns, site: Site, error: Exception) -> Issue:
    file, line = place_of(error) or runs.model.places.get(site.name) or (None, None)
    if _UNEQUAL_SCALES in str(error):
        problem, remedy = _first_line(error).split(" Use ", 1)
        why = "A sum of probabilities with different exponents is no density of the rows."
        remedy = f"Use {remedy}"
        return Issue("unequal-scales", "error", site.name, problem, why, remedy, file, line)
    # Beyond the history of a chain its dimensions are used again.
    history = (
        " If a site of a chain depends on k sites before it, write pyro.markov(…, history=k)."
        if runs.model.nodes()[site.name]["infer"].get("_markov_depth")
        else ""
    )
    return Issue(
        "enumeration-fails",
        "error",
        site.name,
        f"The pair does not run with {site.name!r} enumerated: {_first_line(error)}",
        f"Enumerated, {site.name!r} has shape ({site.values}, 1, …) with its values to the left "
        "of all plates; code that expects its sampled shape fails or mixes dimensions.",
        f"Index with pyro.ops.indexing.Vindex: Vindex(table)[{site.name}], or "
        f"Vindex(table)[..., {site.name}, :] for rows of it; give every plate its dim.{history}",
        file,
        line,
    )


def _mixes(runs: TrialRuns, site: Site, loss: float, exact: float) -> Issue:
    return runs.model.issue(
        "enumeration-mixes",
        "error",
        site.name,
        f"The sum over the values of {site.name!r} one by one is a loss of {exact:.6g}; "
        f"enumerated, it is {loss:.6g}.",
        f"Enumerated, {site.name!r} has shape ({site.values}, 1, …): a line takes the dimension of "
        "its values for that of the rows, or mixes rows of the batch.",
        f"Use {site.name!r} without reshape, squeeze or sums over it: "
        f"Vindex(table)[{site.name}] from pyro.ops.indexing.",
    )


def _one_by_one(runs: TrialRuns, site: Site) -> float | None:
    """-[Σ log Σ_v p(x, z, v) - log q(z)] at the guide's draws z, one value v after the other.

    None where it is not defined: scaled or masked sites, enumerated guides, or programs that are
    not deterministic.
    """
    model, guide = runs.programs
    node = runs.model.nodes()[site.name]
    in_guide = any(other["infer"].get("enumerate") for other in runs.guide.nodes().values())
    if in_guide or isinstance(node["mask"], Tensor) or node["mask"] is False:
        return None
    values = node["fn"].enumerate_support(expand=True)  # (V, ...)
    plates = {frame.name: frame.dim for frame in node["cond_indep_stack"]}
    joint: list[Tensor] = []
    outside: list[Tensor] = []
    with dry_run(model, guide, seed=0), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(*runs.batch)
        for value in [*values, values[0]]:
            fixed = poutine.condition(poutine.replay(model, guide_trace), data={site.name: value})
            trace = poutine.trace(fixed).get_trace(*runs.batch)
            per_row, rest = _split(trace, plates, values.device)
            if per_row is None:
                return None
            joint.append(per_row)
            outside.append(rest)
        varies = not torch.allclose(joint[0], joint.pop())
        if varies or not all(torch.allclose(outside[0], rest) for rest in outside):
            return None
        log_p = torch.stack(joint).logsumexp(0).sum() + outside[0]
        return float(guide_trace.log_prob_sum() - log_p)


def _split(
    trace: poutine.Trace, plates: dict[str, int | None], device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """log p of the sites inside `plates` (name -> dim), by their members; and of all others."""
    trace.compute_log_prob()
    rows: Any = torch.zeros((), device=device)
    rest = torch.zeros(())
    for node in trace.nodes.values():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if isinstance(node["scale"], Tensor) or node["scale"] != 1.0:
            return None, rest
        log_prob = node["log_prob"]
        if plates.keys() <= {frame.name for frame in node["cond_indep_stack"]}:
            others = [d for d in range(-log_prob.dim(), 0) if d not in plates.values()]
            rows = rows + (log_prob.sum(others, keepdim=True) if others else log_prob)
        else:
            rest = rest + log_prob.sum()
    return rows, rest


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
