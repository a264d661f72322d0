"""Check that plates declare batch dimensions and contain the rows."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, map_rows, rows, run_program
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature

# Faults that an error of an earlier check at the same site explains.
EXPLAINED = ("undeclared-batch", "outside-data-plate")


def check_plates(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Undeclared dimensions, sequential plates, wrong sizes, rows outside the data plate."""
    wrong = {issue.site for issue in known if issue.severity == "error"}
    for issue in _all_plates(runs):
        if issue.code not in EXPLAINED or issue.site not in wrong:
            yield issue


def _all_plates(runs: TrialRuns) -> Iterator[Issue]:
    # The model with prior draws, since draws of a guide with the wrong shape have faults too.
    model = runs.standalone[0] if runs.standalone[0].signature is not None else runs.model
    for trial in (model, runs.guide):
        yield from _undeclared(trial, rows(runs.batch))
        yield from _sequential(trial)
        yield from _data_size(trial, runs.batch)
    yield from _per_row(runs)


def _undeclared(trial: TrialRun, B: int | None) -> Iterator[Issue]:
    """Batch dimensions that no plate declares, which are dimensions of dependence."""
    assert trial.signature is not None
    open_plates = {plate.name for plate in trial.signature.plates}
    for site in trial.signature.sites:
        dims = {trial.signature.plate(name).dim for name in site.plates}
        for i, size in enumerate(site.batch_shape):
            dim = i - len(site.batch_shape)
            if size > 1 and dim not in dims:
                yield trial.issue(
                    "undeclared-batch",
                    "error",
                    site.name,
                    f"{site.name!r} has {size} values at batch dimension {dim}, which no plate "
                    "declares.",
                    "Objectives would treat them as dependent, and mini-batches would scale them "
                    "wrongly.",
                    f"Declare the rows: with pyro.plate({DATA_PLATE!r}, len(x), dim={dim}):"
                    if size == B and DATA_PLATE not in open_plates
                    else f"Make it part of the event, dist.{site.distribution}(...).to_event("
                    f"{-dim}), or declare it: with pyro.plate('rows', {size}, dim={dim}):",
                )
                break


def _sequential(trial: TrialRun) -> Iterator[Issue]:
    assert trial.signature is not None
    for plate in trial.signature.plates:
        if plate.dim is None:
            inside = [site for site in trial.signature.sites if plate.name in site.plates]
            site = inside[0].name if inside else None
            yield trial.issue(
                "sequential-plate",
                "warning",
                site,
                f"Plate {plate.name!r} is sequential: one row at a time ({plate.size} rows, from "
                f"{site!r} on).",
                "A step runs the body once per row, and rows cannot be distinguished from "
                "particles.",
                f"with pyro.plate({plate.name!r}, {plate.size}, dim=-1):  # no for; tensors "
                "with all rows inside",
            )


def _data_size(trial: TrialRun, batch: tuple[Any, ...]) -> Iterator[Issue]:
    B = rows(batch)
    assert trial.signature is not None
    names = [plate.name for plate in trial.signature.plates]
    if B is None or DATA_PLATE not in names:
        return
    plate = trial.signature.plate(DATA_PLATE)
    if B in (plate.size, plate.full_size):
        return
    site = next((s.name for s in trial.signature.sites if DATA_PLATE in s.plates), None)
    yield trial.issue(
        "plate-size",
        "error",
        site,
        f"The plate {DATA_PLATE!r} around {site!r} has {plate.size} rows, and the batch has {B}.",
        "Each row of the plate is a row of the batch; N/B would scale another number of rows.",
        f"with pyro.plate({DATA_PLATE!r}, len(x), dim=-1):",
    )


def _per_row(runs: TrialRuns) -> Iterator[Issue]:
    """Run again with one row less: values that shrink belong in the plate "data"."""
    B = rows(runs.batch)
    if B is None or B < 3:
        return
    fewer = map_rows(runs.batch, lambda part: part[:-1])
    for program, trial in zip(runs.programs, (runs.model, runs.guide), strict=True):
        with dry_run(program):
            shrunk = run_program(program, *fewer)
        if shrunk.error is not None or shrunk.signature is None or trial.signature is None:
            continue
        yield from _outside(trial, shrunk.signature, B)
        yield from _scaled_by_hand(trial, shrunk, B)


def _outside(trial: TrialRun, shrunk: Signature, B: int) -> Iterator[Issue]:
    assert trial.signature is not None
    declared = any(plate.name == DATA_PLATE for plate in trial.signature.plates)
    for site in trial.signature.sites:
        if site.name not in shrunk or site.local or shrunk[site.name].shape == site.shape:
            continue
        if len(shrunk[site.name].shape) != len(site.shape):
            continue
        # A program without the plate may be intended (a Gaussian process); a part of one may not.
        yield trial.issue(
            "outside-data-plate",
            "error" if declared else "warning",
            site.name,
            f"{site.name!r} has a value for each of the {B} rows, shape {tuple(site.shape)}, "
            f"outside the plate {DATA_PLATE!r}.",
            "A mini-batch would not scale it, and bounds per row would not contain it.",
            f"Move pyro.sample({site.name!r}, ...) into the block with pyro.plate({DATA_PLATE!r}, "
            "len(x), dim=-1), with the distribution of one row: without the rows in its event."
            if declared
            else f"with pyro.plate({DATA_PLATE!r}, len(x), dim=-1): "
            f"pyro.sample({site.name!r}, ...)",
        )


def _scaled_by_hand(trial: TrialRun, shrunk: TrialRun, B: int) -> Iterator[Issue]:
    """A scale that grows with fewer rows: a factor N/B in the program."""
    for name, node in trial.nodes().items():
        other = shrunk.nodes().get(name)
        frames = {frame.name: frame for frame in node["cond_indep_stack"]}
        if other is None or DATA_PLATE not in frames:
            continue
        before, after = (_scale_without_plates(each) for each in (node, other))
        if isinstance(before, float) and isinstance(after, float) and before != 1.0:
            subsampled = frames[DATA_PLATE].full_size not in (None, frames[DATA_PLATE].size)
            frame = frames[DATA_PLATE]
            if abs(after / before - B / (B - 1)) < 1e-6 or (
                subsampled and abs(before - frame.full_size / frame.size) < 1e-6
            ):
                yield trial.issue(
                    "double-scaling",
                    "error",
                    name,
                    f"{name!r} is scaled by {before:g} by hand, a second factor N/B.",
                    f"The toolkit and subsample_size scale the plate {DATA_PLATE!r} by N/B "
                    "already: the data would count twice.",
                    "Remove the pyro.poutine.scale around it.",
                )


def _scale_without_plates(node: dict[str, Any]) -> Any:
    """Scale of a site without the factors of its plates."""
    scale = node["scale"]
    for frame in node["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            scale = scale / (frame.full_size / frame.size)
    if isinstance(scale, Tensor):
        return scale.item() if scale.numel() == 1 else None
    return float(scale)
