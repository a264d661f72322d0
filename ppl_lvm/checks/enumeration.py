"""Does the pair run with its marked sites at all their values at once, and mean the same?"""

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

_MOST_VALUES = 20  # beyond, trying the values one by one would take too long


def check_enumeration(look: TrialRuns) -> Iterator[Issue]:
    """Run the model as TraceEnum_ELBO will, with every marked site at all its values."""
    assert look.model.signature is not None
    marked = [site for site in look.model.signature.latents if summed_out(site, look)]
    if not marked:
        return
    site = marked[0]
    dims = [plate.dim or 0 for plate in look.model.signature.plates]
    nesting = -min(dims, default=0)
    model, guide = look.programs
    with (
        dry_run(model, guide, seed=0),
        pyro.validation_enabled(True),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            loss = TraceEnum_ELBO(max_plate_nesting=nesting).loss(model, guide, *look.batch)
        except Exception as error:  # whatever a user's program raises is a finding
            yield _fails(look, site, error)
            return
    if len(marked) == 1 and (site.values or 0) <= _MOST_VALUES:
        exact = _one_by_one(look, site)
        if exact is not None and abs(loss - exact) > 1e-3 * (1 + abs(exact)):
            yield _mixes(look, site, loss, exact)


def summed_out(site: Site, look: TrialRuns) -> bool:
    """Whether the model marks the site for enumeration and the guide leaves it out."""
    assert look.guide.signature is not None
    return site.enumerate == "parallel" and site.name not in look.guide.signature


def _fails(look: TrialRuns, site: Site, error: Exception) -> Issue:
    file, line = place_of(error) or look.model.places.get(site.name) or (None, None)
    return Issue(
        "enumeration-fails",
        "error",
        site.name,
        f"The pair does not run with {site.name!r} enumerated: {_first_line(error)}",
        f"Enumerated, {site.name!r} has shape ({site.values}, 1, …) with its values to the left "
        "of all plates; code that counts on its plain shape breaks or mixes dimensions.",
        f"Index with pyro.ops.indexing.Vindex: Vindex(table)[{site.name}], or "
        f"Vindex(table)[..., {site.name}, :] for rows of it; give every plate its dim.",
        file,
        line,
    )


def _mixes(look: TrialRuns, site: Site, loss: float, exact: float) -> Issue:
    return look.model.finding(
        "enumeration-mixes",
        "error",
        site.name,
        f"Summed over its values one by one, {site.name!r} gives a loss of {exact:.6g}; "
        f"enumerated, it gives {loss:.6g}.",
        f"Enumerated, {site.name!r} has shape ({site.values}, 1, …): a line takes the dimension of "
        "its values for the rows, or mixes rows of the batch.",
        f"Use {site.name!r} as it comes, without reshape, squeeze or sums over it: "
        f"Vindex(table)[{site.name}] from pyro.ops.indexing.",
    )


def _one_by_one(look: TrialRuns, site: Site) -> float | None:
    """-[Σ log Σ_v p(x, z, v) - log q(z)] at the guide's draws z, value after value v.

    None where it cannot be told so: scaled or masked sites, guides that are enumerated
    themselves, or programs that vary by themselves.
    """
    model, guide = look.programs
    node = look.model.nodes()[site.name]
    by_guide = any(drawn["infer"].get("enumerate") for drawn in look.guide.nodes().values())
    if by_guide or isinstance(node["mask"], Tensor) or node["mask"] is False:
        return None
    values = node["fn"].enumerate_support(expand=True)  # (V, ...)
    inside = {frame.name for frame in node["cond_indep_stack"]}
    joint: list[Tensor] = []
    outside: list[Tensor] = []
    with dry_run(model, guide, seed=0), torch.no_grad():
        drawn = poutine.trace(guide).get_trace(*look.batch)
        for value in [*values, values[0]]:
            fixed = poutine.condition(poutine.replay(model, drawn), data={site.name: value})
            trace = poutine.trace(fixed).get_trace(*look.batch)
            per_row, rest = _split(trace, inside, site.batch_shape, values.device)
            if per_row is None:
                return None
            joint.append(per_row)
            outside.append(rest)
        varies = not torch.allclose(joint[0], joint.pop())
        if varies or not all(torch.allclose(outside[0], rest) for rest in outside):
            return None
        log_p = torch.stack(joint).logsumexp(0).sum() + outside[0]
        return float(drawn.log_prob_sum() - log_p)


def _split(
    trace: poutine.Trace, inside: set[str], shape: torch.Size, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """log p of the sites within the plates `inside`, by row (*shape); and of all others."""
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
