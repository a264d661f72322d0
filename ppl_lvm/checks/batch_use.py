"""Check the use of the batch by model and guide."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import Program, TrialRun, TrialRuns, run_program
from ppl_lvm.programs.batch_versions import copies
from ppl_lvm.programs.dependencies import arguments_read
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import frame_size, num_rows
from ppl_lvm.programs.row_plates import row_plates

COPY = "Change a copy: x = x - x.mean() in place of x -= x.mean(), x.clamp(0) in place of x.clamp_."


def check_unchanged_batch(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """A program that changes its arguments in place."""
    for program, trial, role in runs.by_role():
        for place in trial.changed_arguments:
            name = _argument_name(program, place)
            yield trial.issue(
                "data-changed",
                "error",
                None,
                f"The {role} changes its argument {name} in place.",
                "The data would be other data at every step, and those of the caller too.",
                COPY,
            )


def check_observed_batch(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Sites of a plate over rows that observe one row for all, or a constant and no data."""
    B, model = num_rows(runs.batch), runs.programs[0]
    if B is None or B < 2 or runs.model.trace is None:
        return
    plates = row_plates(*runs.programs, batch=runs.batch).names
    observed = {
        name: node
        for name, node in runs.model.nodes().items()
        if node["is_observed"] and isinstance(node["value"], Tensor)
    }
    if not observed:
        return
    values = _observed_values(model, runs.batch, observed)
    by_argument: dict[int, set[str]] = {}  # argument -> sites that observe its values
    for place, part in enumerate(runs.batch):
        if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != B:
            continue
        change = part.roll(1, 0) + 1 if part.is_floating_point() else part.roll(1, 0)
        changed = (*runs.batch[:place], change, *runs.batch[place + 1 :])
        others = _observed_values(model, changed, observed)
        if values is None or others is None or _equal(part, change):
            return  # nothing can be said
        by_argument[place] = {name for name in observed if not _equal(values[name], others[name])}
    from_data = set().union(*by_argument.values())
    unread: list[int] = []
    if len(from_data) < len(observed):
        read = _arguments_read(model, runs.batch)
        unread = [p for p, sites in by_argument.items() if not sites and str(p) not in read]
    for name, node in observed.items():
        if not any(frame.name in plates for frame in node["cond_indep_stack"]):
            continue
        if name in from_data and _broadcast_over_rows(node, plates):
            yield runs.model.issue(
                "one-row-observed",
                "error",
                name,
                f"{name!r} observes one row of the data in place of all {B}.",
                "Broadcasting would count this row as often as there are rows.",
                f"pyro.sample({name!r}, ..., obs=x) with all rows of x.",
            )
        elif name not in from_data and unread:
            argument = _argument_name(model, unread[0])
            yield runs.model.issue(
                "constant-observed",
                "warning",
                name,
                f"{name!r} observes a constant, and the model does not read the values of its "
                f"argument {argument}.",
                "The fit would not depend on these data.",
                f"pyro.sample({name!r}, ..., obs={argument})",
            )


def _observed_values(
    model: Program, batch: tuple[Any, ...], sites: Iterable[str]
) -> dict[str, Tensor] | None:
    """Observed values of a model's sites; None if it fails or has other sites."""
    with dry_run(model), torch.no_grad():
        pyro.get_param_store().clear()
        trial: TrialRun = run_program(model, *batch, seed=1)
        if trial.error is not None or not set(sites) <= trial.nodes().keys():
            return None
        return {name: trial.nodes()[name]["value"] for name in sites}


def _arguments_read(model: Program, batch: tuple[Any, ...]) -> frozenset[str]:
    """Numbers of the arguments that densities read; all of them where it is unknown."""
    read = None
    with dry_run(model, seed=1), suppress(Exception):
        pyro.get_param_store().clear()
        read = arguments_read(model, *copies(batch))
    return frozenset(map(str, range(len(batch)))) if read is None else read


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(a is b)
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _broadcast_over_rows(node: dict[str, Any], plates: frozenset[str]) -> bool:
    """True if the value has one member where the plate over rows has several."""
    value, events = node["value"], node["fn"].event_dim
    for frame in node["cond_indep_stack"]:
        if frame.name in plates and frame.dim is not None and frame_size(node, frame) > 1:
            axis = frame.dim - events
            return bool(value.dim() < -axis or value.shape[axis] == 1)
    return False


def _argument_name(program: Program, place: int) -> str:
    """Name of a positional argument; its number if it has none."""
    try:
        names = [
            p.name
            for p in inspect.signature(getattr(program, "forward", program)).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        names = []
    return names[place] if place < len(names) else f"number {place + 1}"
