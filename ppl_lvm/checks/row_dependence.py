"""What belongs to the rows of this one batch, and would be another row's in the next?"""

from collections.abc import Iterator

import pyro
import torch
from torch import Tensor

from ppl_lvm.checks.determinism import density
from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, rows, run
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE


def check_rows(look: TrialRuns, num_rows: int | None) -> Iterator[Issue]:
    """The guide on other rows than these: fewer of them, and turned around."""
    B = rows(look.batch)
    if B is None or B < 3 or look.guide.signature is None:
        return
    helpers = {n for n, node in look.guide.nodes().items() if node["infer"].get("is_auxiliary")}
    sites = [site for site in look.guide.signature.sites if site.local]
    local = [site.name for site in sites if site.name not in helpers]
    if not local:
        return
    severity = "error" if num_rows is not None and num_rows > B else "note"
    tied = _tied(look, local, B)
    if tied is not None:
        yield look.guide.finding(
            "row-by-row",
            severity,
            local[0],
            f"The guide's {local[0]!r} belongs to the {B} rows of this batch: {tied}.",
            "All rows at once, in their order, are right; in mini-batches it would be another "
            "row's.",
            "Train on all rows at once (batch_size=None), or compute it from the row: "
            "AmortizedNormal(model, x).",
        )
    else:
        yield from _turned(look)


def _tied(look: TrialRuns, local: list[str], B: int) -> str | None:
    """What tells that the guide knows these rows: seen by leaving out the last."""
    fewer = tuple(
        part[:-1] if isinstance(part, Tensor) and part.dim() and len(part) == B else part
        for part in look.batch
    )
    with dry_run(look.programs[1]):
        pyro.get_param_store().clear()
        less = run(look.programs[1], *fewer)
    if less.error is not None or less.signature is None:
        return f"it does not run with one of them left out ({type(less.error).__name__})"
    for name in local:
        if name in less.signature and any(
            frame.name == DATA_PLATE and frame.size == B
            for frame in less.nodes()[name]["cond_indep_stack"]
        ):
            return "it draws as many with one of them left out"
    return _grown(look.standalone[1], less)


def _grown(whole: TrialRun, less: TrialRun) -> str | None:
    if whole.error is not None:
        return None
    shapes = {name: leaf.shape for name, leaf in less.parameters().items()}
    for name, leaf in whole.parameters().items():
        if name in shapes and shapes[name] != leaf.shape:
            return f"its parameter {name!r} has the shape {tuple(leaf.shape)}"
    return None


def _turned(look: TrialRuns) -> Iterator[Issue]:
    """Turn the rows around: a datum's density must turn with it, unless it depends on position."""
    guide, B = look.guide, rows(look.batch)
    assert guide.signature is not None
    local = [site for site in guide.signature.sites if site.local]
    if not local or any(site.plates[-1:] != ("data",) for site in local):
        return
    turned = tuple(
        part.flip(0) if isinstance(part, Tensor) and part.dim() and len(part) == B else part
        for part in look.batch
    )
    with dry_run(look.programs[1]), torch.no_grad():
        backwards = run(look.programs[1], *turned)
    with dry_run(look.programs[1]), torch.no_grad():
        elsewhere = run(look.programs[1], *look.batch, seed=3)
    if backwards.error is not None or elsewhere.error is not None:
        return
    there, back, noisy = guide.nodes(), backwards.nodes(), elsewhere.nodes()
    for site in local:
        if site.name not in back or len(site.batch_shape) != 1:
            continue
        value = there[site.name]["value"]
        same = density(there[site.name], value), density(back[site.name], value.flip(0))
        again = density(noisy.get(site.name, there[site.name]), value)
        if any(density is None for density in (*same, again)) or site.distribution == "Delta":
            continue
        if not torch.allclose(same[0], again):
            continue  # parameters that are random themselves (dropout) cannot be compared so
        if not torch.allclose(same[0], same[1].flip(0), rtol=1e-3, atol=1e-3):
            yield guide.finding(
                "batch-order",
                "warning",
                site.name,
                f"The guide's {site.name!r} depends on where in the batch a row stands.",
                "In shuffled mini-batches a row's parameters would be another row's.",
                "Compute them from the row itself, as AmortizedNormal(model, x) does, or train on "
                "all rows at once, unshuffled.",
            )
