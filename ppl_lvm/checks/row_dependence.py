"""Check that rows depend on their own data and draws."""

import warnings
from collections.abc import Iterator

import pyro
import torch

from ppl_lvm.checks.determinism import density
from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, map_rows, run_program
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.particles.tracing import plate_dim
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import num_rows
from ppl_lvm.programs.row_plates import row_plates


def check_rows(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """The guide on fewer rows, and on the rows in reversed order."""
    B = num_rows(runs.batch)
    if B is None or B < 3 or runs.guide.signature is None:
        return
    auxiliary = {n for n, node in runs.guide.nodes().items() if node["infer"].get("is_auxiliary")}
    sites = [site for site in runs.guide.signature.sites if site.local]
    local = [site.name for site in sites if site.name not in auxiliary]
    if not local:
        return
    severity = "error" if runs.num_rows is not None and runs.num_rows > B else "note"
    reason = _fixed_rows(runs, local, B)
    if reason is not None:
        yield runs.guide.issue(
            "row-by-row",
            severity,
            local[0],
            f"The guide's {local[0]!r} belongs to the {B} rows of this batch: {reason}.",
            "It is right for all rows at once in their order; in mini-batches it would be that of "
            "another row.",
            "Train on all rows at once (batch_size=None), or compute it from the row: "
            "AmortizedNormal(model, x).",
        )
    else:
        yield from _reversed(runs)


def _fixed_rows(runs: TrialRuns, local: list[str], B: int) -> str | None:
    """Evidence that the guide is fixed to these rows, from a run without the last one."""
    fewer = map_rows(runs.batch, lambda part: part[:-1])
    plates = row_plates(*runs.programs, batch=runs.batch).names
    with dry_run(runs.programs[1]):
        pyro.get_param_store().clear()
        shorter = run_program(runs.programs[1], *fewer)
    if shorter.error is not None or shorter.signature is None:
        return f"it does not run without one of them ({type(shorter.error).__name__})"
    for name in local:
        if name in shorter.signature and any(
            frame.name in plates and frame.size == B
            for frame in shorter.nodes()[name]["cond_indep_stack"]
        ):
            return "it draws as many without one of them"
    return _sized_parameter(runs.standalone[1], shorter)


def _sized_parameter(complete: TrialRun, shorter: TrialRun) -> str | None:
    """A parameter whose shape depends on the number of rows."""
    if complete.error is not None:
        return None
    shapes = {name: leaf.shape for name, leaf in shorter.parameters().items()}
    for name, leaf in complete.parameters().items():
        if name in shapes and shapes[name] != leaf.shape:
            return f"its parameter {name!r} has the shape {tuple(leaf.shape)}"
    return None


def _reversed(runs: TrialRuns) -> Iterator[Issue]:
    """Reverse the rows: the density of a row must not depend on its position."""
    guide = runs.guide
    assert guide.signature is not None
    plates = row_plates(*runs.programs, batch=runs.batch).names
    local = [site for site in guide.signature.sites if site.local]
    reversed_batch = map_rows(runs.batch, lambda part: part.flip(0))
    with dry_run(runs.programs[1]), torch.no_grad():
        reversed_trial = run_program(runs.programs[1], *reversed_batch)
    with dry_run(runs.programs[1]), torch.no_grad():
        other_trial = run_program(runs.programs[1], *runs.batch, seed=3)
    if reversed_trial.error is not None or other_trial.error is not None:
        return
    nodes, reversed_nodes = guide.nodes(), reversed_trial.nodes()
    other_nodes = other_trial.nodes()
    for site in local:
        node = nodes[site.name]
        dim = plate_dim(node, plates)
        if site.name not in reversed_nodes or dim is None:
            continue
        value = node["value"]
        log_q = density(node, value)
        flipped = value.flip(dim - len(site.event_shape))
        reversed_log_q = density(reversed_nodes[site.name], flipped)
        other_log_q = density(other_nodes.get(site.name, node), value)
        if any(each is None for each in (log_q, reversed_log_q, other_log_q)):
            continue
        if site.distribution == "Delta" or not torch.allclose(log_q, other_log_q):
            continue  # random parameters (dropout) cannot be compared
        if not torch.allclose(log_q, reversed_log_q.flip(dim), rtol=1e-3, atol=1e-3):
            yield guide.issue(
                "batch-order",
                "warning",
                site.name,
                f"The guide's {site.name!r} depends on the position of a row in the batch.",
                "In shuffled mini-batches a row would have the parameters of another row.",
                "Compute them from the row, as AmortizedNormal(model, x) does, or train on "
                "all rows at once, unshuffled.",
            )


def check_mixed_rows(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """The density of a row must not depend on the draws of other rows."""
    model, guide = runs.programs
    with dry_run(model, guide, seed=0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mixed = analyze_pair(model, guide, runs.batch, {}).mixed
        except Exception:  # every estimator stops with this error, and names it
            return
    if not mixed:
        return
    role, site = next(iter(mixed.values()))
    trial = runs.model if role == "model" else runs.guide
    yield trial.issue(
        "rows-mixed",
        "warning",
        site,
        f"{site!r} in one row of plate {next(iter(mixed))!r} depends on latents of other rows.",
        "A plate declares its rows independent. Pyro's objectives then omit score terms, and "
        "mini-batches change the model; this package's estimators use one weight for all rows.",
        "Make what belongs together one row: the steps of a sequence in .to_event(1) or "
        "pyro.markov, a quantity of all rows as a site outside the plate.",
    )
