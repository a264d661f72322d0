"""Check that enumerated sites run and give the exact sum."""

import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns, place_of
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.signatures import Site

_MAX_VALUES = 20  # largest number of values that are tried one by one


def check_enumeration(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Run the model as TraceEnum_ELBO does, with all values of every marked site at once."""
    assert runs.model.signature is not None
    marked = [site for site in runs.model.signature.latents if enumerated_in_model(site, runs)]
    if not marked:
        return
    site = marked[0]
    dims = [plate.dim or 0 for plate in runs.model.signature.plates]
    nesting = -min(dims, default=0)
    model, guide = runs.programs
    with (
        dry_run(model, guide, seed=0),
        pyro.validation_enabled(True),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            loss = TraceEnum_ELBO(max_plate_nesting=nesting).loss(model, guide, *runs.batch)
        except Exception as error:  # every exception of a user's program is an issue
            yield _fails(runs, site, error)
            return
    if len(marked) == 1 and (site.values or 0) <= _MAX_VALUES:
        exact = _one_by_one(runs, site)
        if exact is not None and abs(loss - exact) > 1e-3 * (1 + abs(exact)):
            yield _mixes(runs, site, loss, exact)


def enumerated_in_model(site: Site, runs: TrialRuns) -> bool:
    """True if the model marks the site for enumeration and the guide does not sample it."""
    assert runs.guide.signature is not None
    return site.enumerate == "parallel" and site.name not in runs.guide.signature


def _fails(runs: TrialRuns, site: Site, error: Exception) -> Issue:
    file, line = place_of(error) or runs.model.places.get(site.name) or (None, None)
    return Issue(
        "enumeration-fails",
        "error",
        site.name,
        f"The pair does not run with {site.name!r} enumerated: {_first_line(error)}",
        f"Enumerated, {site.name!r} has shape ({site.values}, 1, …) with its values to the left "
        "of all plates; code that expects its sampled shape fails or mixes dimensions.",
        f"Index with pyro.ops.indexing.Vindex: Vindex(table)[{site.name}], or "
        f"Vindex(table)[..., {site.name}, :] for rows of it; give every plate its dim.",
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
    inside = {frame.name for frame in node["cond_indep_stack"]}
    joint: list[Tensor] = []
    outside: list[Tensor] = []
    with dry_run(model, guide, seed=0), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(*runs.batch)
        for value in [*values, values[0]]:
            fixed = poutine.condition(poutine.replay(model, guide_trace), data={site.name: value})
            trace = poutine.trace(fixed).get_trace(*runs.batch)
            per_row, rest = _split(trace, inside, site.batch_shape, values.device)
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
    trace: poutine.Trace, inside: set[str], shape: torch.Size, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """log p of the sites inside the plates `inside`, by row (*shape); and of all others."""
    trace.compute_log_prob()
    rows: Any = torch.zeros(shape, device=device)
    rest = torch.zeros(())
    for node in trace.nodes.values():
        if node["type"] != "sample":
            continue
        if isinstance(node["scale"], Tensor) or node["scale"] != 1.0:
            return None, rest
        log_prob = node["log_prob"]
        if inside <= {frame.name for frame in node["cond_indep_stack"]}:
            rows = rows + log_prob.sum_to_size(shape)
        else:
            rest = rest + log_prob.sum()
    return rows, rest


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
