"""Check that plates declare batch dimensions and contain the rows."""

from collections.abc import Iterator
from typing import Any

from torch import Size, Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.parameter_uses import one_for_each_row
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, map_rows, run_program
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE, num_rows
from ppl_lvm.programs.row_plates import row_plates
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
    yield from _undecided(runs)
    model = runs.standalone[0] if runs.standalone[0].signature is not None else runs.model
    for trial in (model, runs.guide):
        together = {i.site for i in _undeclared(runs.model, num_rows(runs.batch))}
        for issue in _undeclared(trial, num_rows(runs.batch)):
            if trial is runs.guide or issue.site in together:
                yield issue
        yield from _sequential(trial)
        yield from _parameter_sizes(trial)
        yield from _single_row(trial)
        yield from _data_size(trial, runs.batch)
    yield from _per_row(runs)


def _undecided(runs: TrialRuns) -> Iterator[Issue]:
    """Plates of which any may be over the rows."""
    plates = row_plates(*runs.programs, batch=runs.batch)
    if plates.undecided and not plates.names:
        listed = " and ".join(repr(name) for name in sorted(plates.undecided))
        yield Issue(
            code="undecided-row-plate",
            severity="warning",
            site=None,
            message=f"The plates {listed} have one member for each of the rows, and which of them "
            "is over the rows is unknown.",
            why="The rows count as one: no mini-batches, codes or log-weights of single rows.",
            remedy=f"Write the plate over the rows as pyro.plate({DATA_PLATE!r}, len(x)), with len "
            "of the batch, and give the other a fixed size. Pairs of rows have no such plate.",
        )


def _undeclared(trial: TrialRun, B: int | None) -> Iterator[Issue]:
    """Batch dimensions that no plate declares, which are dimensions of dependence."""
    assert trial.signature is not None
    for site in trial.signature.sites:
        dims = {trial.signature.plate(name).dim for name in site.plates}
        leftmost = min((dim for dim in dims if dim is not None), default=0)
        for i, size in enumerate(site.batch_shape):
            dim = i - len(site.batch_shape)
            # Dimensions to the right of a plate are values of one member, as Pyro has it.
            if size > 1 and dim not in dims and dim < leftmost:
                yield trial.issue(
                    "undeclared-batch",
                    "error",
                    site.name,
                    f"{site.name!r} has {size} values at batch dimension {dim}, which no plate "
                    "declares.",
                    "Objectives would treat them as dependent, and mini-batches would scale them "
                    "wrongly.",
                    f"Declare the rows: with pyro.plate({DATA_PLATE!r}, len(x), dim={dim}):"
                    if size == B and trial.signature.row_plate is None
                    else f"Make it part of the event, dist.{site.distribution}(...).to_event("
                    f"{-dim}), or declare it: with pyro.plate('rows', {size}, dim={dim}):",
                )
                break


def _parameter_sizes(trial: TrialRun) -> Iterator[Issue]:
    """Parameters inside a plate, with event_dim, that have another number of rows."""
    assert trial.trace is not None
    for name, node in trial.trace.nodes.items():
        event_dim = node["kwargs"].get("event_dim") if node["type"] == "param" else None
        if event_dim is None:
            continue
        shape = node["value"].shape
        for frame in node["cond_indep_stack"]:
            dim = None if frame.dim is None else frame.dim - event_dim
            if dim is None or len(shape) < -dim:
                continue
            if shape[dim] not in (1, frame.size, frame.full_size or frame.size):
                yield trial.issue(
                    "parameter-size",
                    "error",
                    name,
                    f"The parameter {name!r} of shape {tuple(shape)} has {shape[dim]} values "
                    f"inside plate {frame.name!r} of {frame.full_size or frame.size} rows.",
                    "A parameter inside a plate has one value for each row of the plate, or one.",
                    f"pyro.param({name!r}, torch.zeros({frame.full_size or frame.size}), "
                    f"event_dim={event_dim}); or define it outside the plate.",
                )


def _single_row(trial: TrialRun) -> Iterator[Issue]:
    """Parameters inside a plate, without event_dim, of which one constant row alone is read."""
    for name, use in trial.uses.items():
        if use.event_dim is not None or not use.plates or not use.shape or use.shape[0] < 2:
            continue
        if use.read is None or len(use.read) != 1:
            continue
        plate, (row,) = use.plates[0], use.read
        yield trial.issue(
            "parameter-size",
            "warning",
            name,
            f"The parameter {name!r} of shape {tuple(use.shape)} inside plate {plate.name!r} of "
            f"{plate.full_size or plate.size} rows is read at index {row} alone.",
            f"All rows share this value, and the other {use.shape[0] - 1} are never trained.",
            f"{one_for_each_row(name, use, plate, 0)} without the index, one value for each row; "
            "or a parameter without that dimension, one for all rows.",
        )


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


def has_rows_of(signature: Signature, batch: tuple[Any, ...]) -> bool:
    """True without a plate over rows, or with as many rows in it as in the batch."""
    plate = signature.row_plate
    return plate is None or num_rows(batch) in (None, plate.size, plate.full_size)


def _data_size(trial: TrialRun, batch: tuple[Any, ...]) -> Iterator[Issue]:
    assert trial.signature is not None
    plate = trial.signature.row_plate
    if plate is None or has_rows_of(trial.signature, batch):
        return
    B = num_rows(batch)
    site = next((s.name for s in trial.signature.sites if plate.name in s.plates), None)
    yield trial.issue(
        "plate-size",
        "error",
        site,
        f"The plate {plate.name!r} around {site!r} has {plate.size} rows, and the batch has {B}.",
        "Each row of the plate is a row of the batch; N/B would scale another number of rows.",
        f"with pyro.plate({plate.name!r}, len(x), dim={plate.dim or -1}):",
    )


def _per_row(runs: TrialRuns) -> Iterator[Issue]:
    """Run again with one row less: values that shrink belong in the plate "data"."""
    B = num_rows(runs.batch)
    if B is None or B < 3:
        return
    fewer = map_rows(runs.batch, lambda part: part[:-1])
    for program, trial in zip(runs.programs, (runs.model, runs.guide), strict=True):
        with dry_run(program):
            shrunk = run_program(program, *fewer)
        if shrunk.error is not None or shrunk.signature is None or trial.signature is None:
            continue
        yield from _outside(trial, shrunk.signature, B, runs.num_rows)
        yield from _scaled_by_hand(trial, shrunk, B)


def _counted_in_rows(trial: TrialRun, name: str, shape: Size, fewer: Size, severity: str) -> Issue:
    return trial.issue(
        "size-of-the-rows",
        severity,
        name,
        f"{name!r} has the shape {tuple(shape)}, and without the last row {tuple(fewer)}: its size "
        "is computed from the values of the batch.",
        "Another batch has another size, which the guide and a stored run do not fit.",
        "Give the model the number of groups as an argument of its constructor, and codes from 0: "
        "codes = codes.unique(return_inverse=True)[1].",
    )


def _outside(trial: TrialRun, shrunk: Signature, B: int, N: int | None) -> Iterator[Issue]:
    assert trial.signature is not None
    plate = trial.signature.row_plate
    name = DATA_PLATE if plate is None else plate.name
    # On all rows at once, values of all rows together may be intended (a Gaussian process).
    severity = "warning" if N is None else "error" if N > B else "note"
    for site in trial.signature.sites:
        if site.name not in shrunk or site.local or shrunk[site.name].shape == site.shape:
            continue
        if len(shrunk[site.name].shape) != len(site.shape):
            continue
        sizes = zip(site.shape, shrunk[site.name].shape, strict=True)
        if not any(size == B and other == B - 1 for size, other in sizes):
            yield _counted_in_rows(trial, site.name, site.shape, shrunk[site.name].shape, severity)
            continue
        yield trial.issue(
            "outside-data-plate",
            severity,
            site.name,
            f"{site.name!r} has a value for each of the {B} rows, shape {tuple(site.shape)}, "
            f"outside the plate {name!r}.",
            "A mini-batch would not scale it, and it is no latent of single rows.",
            (
                f"with pyro.plate({name!r}, len(x), dim=-1): pyro.sample({site.name!r}, ...)"
                if plate is None
                else f"Move pyro.sample({site.name!r}, ...) into the block with "
                f"pyro.plate({name!r}, len(x), dim={plate.dim or -1}), with the distribution of "
                "one row: without the rows in its event."
            )
            + " If rows are dependent, train on all of them at once (batch_size=None).",
        )


def _scaled_by_hand(trial: TrialRun, shrunk: TrialRun, B: int) -> Iterator[Issue]:
    """A scale that grows with fewer rows: a factor N/B in the program."""
    assert trial.signature is not None
    names = {plate.name for plate in trial.signature.plates if plate.over_rows}
    for name, node in trial.nodes().items():
        other = shrunk.nodes().get(name)
        frame = next((f for f in node["cond_indep_stack"] if f.name in names), None)
        if other is None or frame is None:
            continue
        before, after = (_scale_without_plates(each) for each in (node, other))
        if isinstance(before, float) and isinstance(after, float) and before != 1.0:
            subsampled = frame.full_size not in (None, frame.size)
            if abs(after / before - B / (B - 1)) < 1e-6 or (
                subsampled and abs(before - frame.full_size / frame.size) < 1e-6
            ):
                yield trial.issue(
                    "double-scaling",
                    "error",
                    name,
                    f"{name!r} is scaled by {before:g} by hand, a second factor N/B.",
                    f"The toolkit and subsample_size scale the plate {frame.name!r} by N/B "
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
